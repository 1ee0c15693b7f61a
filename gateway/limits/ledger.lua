-- One key's last minute for all gateways together: what ledger.py does for one process, and explains.
--
-- KEYS[1]  hash:  t<second> = tokens used   r<second> = requests begun   g<gateway> = "lease held running"
-- ARGV     gateway, its lease in ms; limits of requests, tokens, running (-1: none);
--          change of used, held, running, requests; what is asked for: tokens (-1: nothing), running
--
-- A gateway that dies tells nothing any more: what it holds counts until its lease is over.
-- `now_ms`, the time in milliseconds, is defined by a line put before this one.

local WINDOW_S, SLOT_MS, RUNNING_RETRY_MS = 60, 1000, 1000

local key, me, lease_ms = KEYS[1], 'g' .. ARGV[1], tonumber(ARGV[2])
local max_requests, max_tokens, max_running = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local slot = math.floor(now_ms / SLOT_MS)

local used, begun = {}, {}               -- lists of {second, count}
local used_sum, begun_sum = 0, 0
local held_by_others, running_of_others = 0, 0
local my_held, my_running = 0, 0
local gone = {}

local fields = redis.call('HGETALL', key)
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  local kind, id = string.sub(name, 1, 1), string.sub(name, 2)
  if kind == 'g' then
    local lease, held, running = string.match(value, '(%d+) (%d+) (%d+)')
    if tonumber(lease) < now_ms then
      gone[#gone + 1] = name
    elseif name == me then
      my_held, my_running = tonumber(held), tonumber(running)
    else
      held_by_others = held_by_others + tonumber(held)
      running_of_others = running_of_others + tonumber(running)
    end
  elseif tonumber(id) < slot - WINDOW_S then
    gone[#gone + 1] = name
  elseif kind == 't' then
    used[#used + 1] = {tonumber(id), tonumber(value)}
    used_sum = used_sum + tonumber(value)
  else
    begun[#begun + 1] = {tonumber(id), tonumber(value)}
    begun_sum = begun_sum + tonumber(value)
  end
end
if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end

local function add(list, prefix, count)
  if count == 0 then return end
  redis.call('HINCRBY', key, prefix .. slot, count)
  for _, entry in ipairs(list) do
    if entry[1] == slot then
      entry[2] = entry[2] + count
      return
    end
  end
  list[#list + 1] = {slot, count}
end

local new_used, new_begun = tonumber(ARGV[6]), tonumber(ARGV[9])
add(used, 't', new_used)
add(begun, 'r', new_begun)
used_sum, begun_sum = used_sum + new_used, begun_sum + new_begun
my_held = math.max(0, my_held + tonumber(ARGV[7]))
my_running = math.max(0, my_running + tonumber(ARGV[8]))

local function wait(list, over, limit)
  if over <= 0 then return 0 end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  for _, entry in ipairs(list) do
    over = over - entry[2]
    if over <= 0 then return (entry[1] + WINDOW_S + 1) * SLOT_MS - now_ms end
  end
  local used_up_ms = 0
  if limit > 0 then used_up_ms = math.ceil(over * WINDOW_S * 1000 / limit) end
  return used_up_ms + (slot + WINDOW_S + 1) * SLOT_MS - now_ms
end

local ask_tokens, ask_running = tonumber(ARGV[10]), tonumber(ARGV[11])
local granted, cause, retry_ms = 0, '', 0
if ask_tokens >= 0 then
  if max_requests >= 0 then
    local ms = wait(begun, begun_sum + 1 - max_requests, max_requests)
    if ms > retry_ms then cause, retry_ms = 'requests', ms end
  end
  if max_tokens >= 0 then
    local ms = wait(used, used_sum + my_held + held_by_others + ask_tokens - max_tokens, max_tokens)
    if ms > retry_ms then cause, retry_ms = 'tokens', ms end
  end
  if max_running >= 0 and my_running + running_of_others + ask_running > max_running and cause == '' then
    cause, retry_ms = 'running', RUNNING_RETRY_MS
  end
  if cause == '' then
    granted = 1
    my_held, my_running = my_held + ask_tokens, my_running + ask_running
    add(begun, 'r', 1)
    begun_sum = begun_sum + 1
  end
end

if my_held > 0 or my_running > 0 then
  redis.call('HSET', key, me, string.format('%.0f %.0f %.0f', now_ms + lease_ms, my_held, my_running))
else
  redis.call('HDEL', key, me)
end
redis.call('PEXPIRE', key, (WINDOW_S + 1) * SLOT_MS + lease_ms)

local tokens = used_sum + my_held + held_by_others
return {
  granted, tokens, begun_sum, my_running + running_of_others, cause, retry_ms,
  wait(used, tokens, max_tokens), wait(begun, begun_sum, max_requests),
}
