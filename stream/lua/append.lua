-- Append a batch of one user's events to the packed history: de-duplicate, insert in time order, trim, bump the version
-- and mark the user dirty, all or nothing. The layout is that of stream/history.py.
--
-- KEYS  history, event-id window, dirty set: one hash slot
-- ARGV  1 user  2 code bytes  3 codebook version  4 history length  5 window length
--       6 mark: source u16, epoch u8   7 ms since 1970 at which the oldest of these events was produced
--       8 entries, each: offset u40 | event-id hash 8 bytes | record
-- Returns {profile version, events applied, producer's duplicates, redelivered}

local find, sub, byte, concat, unpack = string.find, string.sub, string.byte, table.concat, struct.unpack
local FORMAT, HEADER, MARK, FIXED, PENDING = 1, 10, 8, 11, 128
local user, code_bytes, codebook = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local length, window = tonumber(ARGV[4]), tonumber(ARGV[5])
local source, epoch = unpack('>I2I1', ARGV[6])
local entries = ARGV[8]
local size = FIXED + code_bytes

local history = redis.call('GET', KEYS[1])
local version, marks, records = 0, {}, ''
if history then
  local format, width, book, v, n = unpack('>I1I1I2I4I2', history)
  if format ~= FORMAT then return redis.error_reply('FORMAT history has format ' .. format) end
  if book ~= codebook or width ~= code_bytes then
    return redis.error_reply('CODEBOOK history was written with codebook ' .. book .. ' of ' .. width .. ' bytes')
  end
  version = v
  for i = 0, n - 1 do
    local s, e, o = unpack('>I2I1I5', history, HEADER + i * MARK + 1)
    marks[#marks + 1] = {s, e, o}
  end
  records = sub(history, HEADER + n * MARK + 1)
end

-- The mark of this source, inserted where its place is; -1 when nothing of this incarnation was applied yet.
local place = 1
while marks[place] and marks[place][1] < source do place = place + 1 end
local mark = marks[place]
if not mark or mark[1] ~= source then
  mark = {source, epoch, -1}
  table.insert(marks, place, mark)
elseif mark[2] ~= epoch then
  mark[2], mark[3] = epoch, -1
end

-- The window: `packed` without its oldest `dropped` hashes, then those of `fresh` from `first` on.
local packed = window > 0 and redis.call('GET', KEYS[2]) or ''
local dropped, fresh, first, among = 0, {}, 1, {}
local function seen(id)
  if among[id] then return true end
  local at = find(packed, id, dropped * 8 + 1, true)
  while at and at % 8 ~= 1 do at = find(packed, id, at + 1, true) end -- across the border of two hashes
  return at
end
local function remember(id)
  if window == 0 then return end
  fresh[#fresh + 1], among[id] = id, true
  while #packed / 8 - dropped + #fresh - first + 1 > window do
    if dropped < #packed / 8 then
      dropped = dropped + 1
    else
      among[fresh[first]], first = nil, first + 1
    end
  end
end

-- Time and scenario of the record at a position: what records are ordered by.
local function order(bytes, position)
  return math.floor(unpack('>I6', bytes, position) / 16)
end
local function pending(bytes, position)
  return byte(bytes, position + 6) >= PENDING
end

-- Records newer than all before go to `tail`; only one that comes late costs a search and a copy.
local tail, newest = {}, -1
if #records > 0 then newest = order(records, #records - size + 1) end
local function insert(record)
  local key = order(record, 1)
  if key >= newest then
    tail[#tail + 1], newest = record, key
    return
  end
  records, tail = records .. concat(tail), {}
  local low, high = 0, #records / size
  while low < high do
    local middle = math.floor((low + high) / 2)
    if order(records, middle * size + 1) <= key then low = middle + 1 else high = middle end
  end
  records = sub(records, 1, low * size) .. record .. sub(records, low * size + 1)
end

local applied, duplicates, redelivered = 0, 0, 0
for at = 1, #entries, 13 + size do
  local offset, id = unpack('>I5c8', entries, at)
  if offset <= mark[3] then
    redelivered = redelivered + 1
  else
    mark[3] = offset
    if seen(id) then
      duplicates = duplicates + 1
    else
      remember(id)
      applied = applied + 1
      local record = sub(entries, at + 13, at + 12 + size)
      insert(record)
      version = version + (pending(record, 1) and 1 or 2)
    end
  end
end

if applied + duplicates > 0 then
  records = records .. concat(tail)
  local excess = #records / size - length
  for i = 0, excess - 1 do
    if pending(records, i * size + 1) then version = version + 1 end
  end
  if excess > 0 then records = sub(records, excess * size + 1) end

  local parts = {struct.pack('>I1I1I2I4I2', FORMAT, code_bytes, codebook, version, #marks)}
  for _, m in ipairs(marks) do parts[#parts + 1] = struct.pack('>I2I1I5', m[1], m[2], m[3]) end
  parts[#parts + 1] = records
  redis.call('SET', KEYS[1], concat(parts))
end
if applied > 0 then
  if window > 0 then redis.call('SET', KEYS[2], sub(packed, dropped * 8 + 1) .. concat(fresh, '', first)) end
  redis.call('ZADD', KEYS[3], 'NX', ARGV[7], user)
end
return {version, applied, duplicates, redelivered}
