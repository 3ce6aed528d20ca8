-- wrk: GET of the links benchN in turn. Arguments: the first N, and how many there are.
local count = 0

function init(args)
  first, links = tonumber(args[1]), tonumber(args[2])
end

function request()
  count = count + 1
  return wrk.format("GET", "/bench" .. (first + count % links))
end
