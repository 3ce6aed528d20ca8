-- wrk: GET of links, as people ask for them. Arguments: "one", "zipf" (of links 1 to N, with exponent 1.1) or "uniform";
-- how many links there are; a number that begins the row of random ones; for another shortener, a file of its slugs.
local agents = {
  "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36",
  "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1",
  "Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0",
  "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Mobile Safari/537.36",
}
local heads = {}
for i, agent in ipairs(agents) do
  heads[i] = " HTTP/1.1\r\nHost: links.example\r\nUser-Agent: " .. agent .. "\r\n\r\n"
end

local count = 0

-- The slugs of another shortener, if it is one.
local slugs

-- As in edge.rs.
local function path(link)
  if slugs then return "GET " .. slugs[link] end
  return string.format("GET /%07x", link * 16777619 % 268435399)
end

local function read_slugs(file)
  slugs = {}
  local prefix = wrk.path:gsub("/$", "") .. "/"
  for slug in io.lines(file) do
    slugs[#slugs + 1] = prefix .. slug
  end
  for i, agent in ipairs(agents) do
    heads[i] = " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\nUser-Agent: " .. agent .. "\r\n\r\n"
  end
end

-- How many popular links are chosen before the load begins: choosing one takes as long as half a request.
local row = 1000000

local function rank_by(cumulative, random)
  local low, high = 1, #cumulative
  while low < high do
    local middle = math.floor((low + high) / 2)
    if cumulative[middle] < random then low = middle + 1 else high = middle end
  end
  return low
end

function init(args)
  local kind, links = args[1], tonumber(args[2])
  math.randomseed(tonumber(args[3]))
  if args[4] then read_slugs(args[4]) end
  if kind == "one" then
    local only = path(1)
    next_request = function(agent) return only .. heads[agent] end
  elseif kind == "uniform" then
    next_request = function(agent) return path(math.random(links)) .. heads[agent] end
  else
    local cumulative, sum = {}, 0
    for rank = 1, links do
      sum = sum + rank ^ -1.1
      cumulative[rank] = sum
    end
    local requests = {}
    for i = 1, row do
      requests[i] = path(rank_by(cumulative, math.random() * sum)) .. heads[i % #heads + 1]
    end
    next_request = function() return requests[count % row + 1] end
  end
end

function request()
  count = count + 1
  return next_request(count % #heads + 1)
end
