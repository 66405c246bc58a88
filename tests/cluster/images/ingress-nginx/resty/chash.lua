-- Stand-in for a module that Debian lacks: a ring of hashed points in plain
-- Lua, for session affinity and upstream-hash-by.
local crc32 = ngx.crc32_short

local POINTS_PER_WEIGHT = 160

local M = {}
M.__index = M

function M:reinit(nodes)
  local ring = {}
  for id, weight in pairs(nodes) do
    for point = 1, POINTS_PER_WEIGHT * weight do
      ring[#ring + 1] = { at = crc32(id .. "/" .. point), id = id }
    end
  end
  table.sort(ring, function(a, b)
    if a.at ~= b.at then
      return a.at < b.at
    end
    return a.id < b.id
  end)
  self.nodes = nodes
  self.ring = ring
end

function M.new(_, nodes)
  local self = setmetatable({}, M)
  self:reinit(nodes)
  return self
end

-- The first point at or after the key's hash; past the last one, the first.
function M:find(key)
  local ring = self.ring
  if #ring == 0 then
    return nil
  end
  local hash = crc32(tostring(key))
  local low, high = 1, #ring + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if ring[middle].at < hash then
      low = middle + 1
    else
      high = middle
    end
  end
  return (ring[low] or ring[1]).id
end

return M
