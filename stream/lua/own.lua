-- Become the owner of a virtual shard: what an earlier owner settles from now on is refused.
--
-- KEYS  owner: the slot of the shard's dirty set
-- ARGV  1 now, ms since 1970
-- Returns the token: now, but more than any before; so tokens go on growing when Redis was lost, and clocks need not agree

local token = math.max(tonumber(ARGV[1]), (redis.call('GET', KEYS[1]) or 0) + 1)
redis.call('SET', KEYS[1], string.format('%.0f', token))
return token
