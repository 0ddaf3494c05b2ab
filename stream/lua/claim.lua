-- Claim an item's index for a name, and return what is known of the index.
--
-- KEYS  item
-- ARGV  1 name
-- Returns {name that holds the index, codes with their codebook version, or false}

redis.call('HSETNX', KEYS[1], 'name', ARGV[1])
return redis.call('HMGET', KEYS[1], 'name', 'codes')
