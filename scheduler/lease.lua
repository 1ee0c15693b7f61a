-- Takes or renews the lease of the active scheduler: a hash of `holder`, `fence` and `until`, in microseconds
-- of this server's clock. It does not expire, so that the fence is not forgotten.
--
-- KEYS[1]  the lease
-- ARGV     who asks; for how many microseconds; the fence under which he is active, or 0; one to outrank, or 0
--
-- Gives the fence under which he holds it from now on, or 0, and how many microseconds it is held by another.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local asking, ttl, own, beyond = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local known = redis.call('HMGET', KEYS[1], 'holder', 'fence', 'until')
local holder, fence, till = known[1], tonumber(known[2] or 0), tonumber(known[3] or 0)

local function hold(by, under)
    redis.call('HSET', KEYS[1], 'holder', by, 'fence', string.format('%.0f', under),
        'until', string.format('%.0f', now + ttl))
end

-- Still his; or this server has forgotten, having come back empty or from an old state, and is told again.
if own > beyond and (holder == asking or own > fence) then
    hold(asking, own)
    return {own, 0}
end
if holder ~= asking and till > now then
    return {0, till - now}
end
-- One who knows of a holder may come before a standby does: an empty server belongs to nobody for a while.
if not holder then
    hold('', 0)
    return {0, ttl}
end
local taken = math.max(now, fence + 1, beyond + 1)
hold(asking, taken)
return {taken, 0}
