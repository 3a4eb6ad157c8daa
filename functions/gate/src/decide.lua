-- Whether a tenant's calls are admitted, and the calls counted if they are.
-- KEYS: the tenant's projection, its usage. ARGV: the time in milliseconds since 1970, how many calls, and '1' where they were
-- admitted before and are only counted.
-- Answers {standing}, or {'active' or 'exceeded', id, limit, used, end of the cycle, its start}. 'cold': the projection does
-- not tell.
local p = redis.call('HMGET', KEYS[1], 'standing', 'id', 'limit', 'override', 'override_until', 'start', 'stop')
local standing, only_count = p[1], ARGV[3] == '1'
if not standing then
  return {'cold'}
end
if (standing ~= 'active' and not only_count) or not p[6] then
  return {standing}
end
local now, start, stop = tonumber(ARGV[1]), p[6], p[7]
if now >= tonumber(stop) or now < tonumber(start) then
  -- The boundary itself begins the next cycle: nobody has to tell.
  start = nil
  local before = nil
  for boundary in string.gmatch(redis.call('HGET', KEYS[1], 'boundaries'), '%d+') do
    if tonumber(boundary) > now then
      start, stop = before, boundary
      break
    end
    before = boundary
  end
  if not start then
    return {'cold'}
  end
end
local limit = p[3]
if p[4] and now < tonumber(p[5]) then
  limit = p[4]
end
local field = 'calls:' .. start
local calls, used = tonumber(ARGV[2]), tonumber(redis.call('HGET', KEYS[2], field) or '0')
-- Who only looks is not refused for the calls of others, not even where a smaller plan has made them too many.
if calls > 0 and used + calls > tonumber(limit) and not only_count then
  return {'exceeded', p[2], limit, used, stop, start}
end
if calls > 0 then
  used = redis.call('HINCRBY', KEYS[2], field, calls)
end
return {'active', p[2], limit, used, stop, start}
