-- Fill codes into the pending records of a history; each record filled adds one to the profile version.
--
-- KEYS  history
-- ARGV  1 code bytes  2 codebook version  3 pairs, each: item index 5 bytes | codes
-- Returns the history, or nil when there is none

local HEADER, MARK, FIXED, PENDING = 10, 8, 11, 128
local history = redis.call('GET', KEYS[1])
if not history then return nil end
local format, width, book, version, n = struct.unpack('>I1I1I2I4I2', history)
if format ~= 1 then return redis.error_reply('FORMAT history has format ' .. format) end
if width ~= tonumber(ARGV[1]) or book ~= tonumber(ARGV[2]) then
  return redis.error_reply('CODEBOOK history was written with codebook ' .. book .. ' of ' .. width .. ' bytes')
end

local codes = {}
for at = 1, #ARGV[3], 5 + width do
  codes[string.sub(ARGV[3], at, at + 4)] = string.sub(ARGV[3], at + 5, at + 4 + width)
end

local body, filled = HEADER + n * MARK, 0
local records = {}
for at = body + 1, #history, FIXED + width do
  local record = string.sub(history, at, at + FIXED + width - 1)
  local flag = string.byte(record, 7)
  if flag >= PENDING then
    local item = string.char(flag - PENDING) .. string.sub(record, 8, 11)
    if codes[item] then
      record = string.sub(record, 1, 6) .. item .. codes[item]
      filled = filled + 1
    end
  end
  records[#records + 1] = record
end
if filled > 0 then
  history = string.sub(history, 1, 4) .. struct.pack('>I4', version + filled) .. string.sub(history, 9, body)
    .. table.concat(records)
  redis.call('SET', KEYS[1], history)
end
return history
