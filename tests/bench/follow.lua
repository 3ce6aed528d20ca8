-- wrk: GET of the links bench0, bench1, ... in turn. Argument: how many there are.
local count = 0

function init(args)
  links = tonumber(args[1])
end

function request()
  count = count + 1
  return wrk.format("GET", "/bench" .. (count % links))
end
