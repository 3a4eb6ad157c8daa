-- Writes a tenant's projection, unless a newer one is there.
-- KEYS: the projection, the usage. ARGV: when the tenant was registered, the version, the tenant's id, for how many
-- milliseconds it holds (0: for good), the field of this cycle's calls, how many were kept of them, and then the projection's
-- fields and values. Answers 1 if it was written.
local held = redis.call('HMGET', KEYS[1], 'registered', 'version', 'id')
if held[1] then
  local registered, version = tonumber(held[1]), tonumber(held[2])
  if registered > tonumber(ARGV[1]) or (registered == tonumber(ARGV[1]) and version > tonumber(ARGV[2])) then
    return 0
  end
  if held[3] ~= ARGV[3] then
    -- Another tenant had the name: what it used is not this one's.
    redis.call('DEL', KEYS[2])
  end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'registered', ARGV[1], 'version', ARGV[2], 'id', ARGV[3], unpack(ARGV, 7))
if ARGV[4] ~= '0' then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
if tonumber(ARGV[6]) > tonumber(redis.call('HGET', KEYS[2], ARGV[5]) or '0') then
  redis.call('HSET', KEYS[2], ARGV[5], ARGV[6])
end
return 1
