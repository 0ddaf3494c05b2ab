-- Clear a user's dirty mark if the profile that was refreshed is still the newest; else date the mark from that refresh.
-- Nothing happens when the shard has got another owner since that refresh began.
--
-- KEYS  history, dirty set, owner: one hash slot
-- ARGV  1 user  2 profile version that was refreshed  3 ms since 1970 at which its history was read  4 fencing token
-- Returns 1 when the user is clean

if tonumber(redis.call('GET', KEYS[3]) or 0) > tonumber(ARGV[4]) then return 0 end
local version = struct.unpack('>I4', redis.call('GETRANGE', KEYS[1], 4, 7) .. string.rep('\0', 4))
if version <= tonumber(ARGV[2]) then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 1
end
redis.call('ZADD', KEYS[2], 'XX', 'GT', ARGV[3], ARGV[1])
return 0
