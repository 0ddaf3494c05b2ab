-- Become the owner of a virtual shard: what an earlier owner settles from now on is refused.
--
-- KEYS  owner: the slot of the shard's dirty set
-- Returns the token: ms since 1970 by this Redis's clock, and more than any before; so it also grows when Redis was lost

local now = redis.call('TIME')
local token = math.max(now[1] * 1000 + math.floor(now[2] / 1000), (redis.call('GET', KEYS[1]) or 0) + 1)
redis.call('SET', KEYS[1], string.format('%.0f', token))
return token
