-- wrk: POST /shorten with a URL that no other request has. Arguments: the admin token, the round's name.
local count, thread_number = 0, 0

function setup(thread)
  thread:set("number", thread_number)
  thread_number = thread_number + 1
end

function init(args)
  token, round = args[1], args[2]
end

function request()
  count = count + 1
  local body = string.format('{"url": "https://bench.example/%s/%d/%d"}', round, number, count)
  local headers = { ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token }
  return wrk.format("POST", "/shorten", headers, body)
end
