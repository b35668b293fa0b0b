"""The transitions of a job as Lua scripts: each an atomic compare-and-set on state and attempt.

Keys given to each script: the record's hash, its event stream, and the prefix of the indices
(sorted sets of ids by sequence number, one per state and one of all). Times are Redis' own, in
milliseconds, so that no two machines' clocks are ever compared. Replies are ``{status, detail…}``;
every transition may be sent twice by the attempt that owns it, with the same reply. The last
argument of each is how many seconds a tombstone outlives its record.
"""

from __future__ import annotations

from jobs import idempotency

_PRELUDE = """
local record, events, prefix = KEYS[1], KEYS[2], KEYS[3]
local id, tombstone_s = ARGV[1], ARGV[#ARGV]

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function index(name) return prefix .. 'index:' .. name end

local function add_to(name, seq, owner)
  redis.call('ZADD', index(name), seq, id)
  redis.call('ZADD', index(name) .. ':' .. owner, seq, id)
end

local function emit(kind, data)
  redis.call('XADD', events, 'MAXLEN', '~', 2000, '*', 'type', kind, 'data', data)
end

local function move(from, to)
  redis.call('HSET', record, 'state', to)
  local found = redis.call('HMGET', record, 'seq', 'owner')
  local owner = found[2] or 'local'
  redis.call('ZREM', index(from), id)
  redis.call('ZREM', index(from) .. ':' .. owner, id)
  add_to(to, found[1], owner)
end

local function sweep(attempt, delay_ms)
  redis.call('ZADD', prefix .. 'sweep', now() + delay_ms, id .. '/' .. attempt .. '/1')
end

-- attempts that count: those that a worker gave back on purpose do not
local function used()
  local found = redis.call('HMGET', record, 'attempt', 'released')
  return tonumber(found[1]) - tonumber(found[2] or 0)
end

local function finish(from, to, ttl_s)
  move(from, to)
  redis.call('HSET', record, 'finished_at', now())
  redis.call('HDEL', record, 'lease_until')
  redis.call('EXPIRE', record, ttl_s)
  local owner = redis.call('HGET', record, 'owner') or 'local'
  redis.call('SET', record .. ':owner', owner, 'EX', ttl_s + tombstone_s)
end

-- nil when the attempt owns the running job, else why it does not
local function not_owner(attempt)
  local found = redis.call('HMGET', record, 'state', 'attempt')
  if not found[1] then return {'missing'} end
  if found[1] == 'running' and found[2] == attempt then return nil end
  if found[1] == 'canceled' and found[2] == attempt then return {'canceled'} end
  return {'stale', found[1], found[2]}
end
"""

# KEYS[4]: the idempotency key's entry
# ARGV: id, limit, request JSON, request id, owner, fingerprint ("": no idempotency key), its TTL
CREATE = (
    _PRELUDE
    + idempotency.LUA
    + """
local created = redis.call('HGET', record, 'created_at')
if created then return {'ok', created} end
local fingerprint = ARGV[6]
local earlier = fingerprint ~= '' and settled(KEYS[4], fingerprint)
if earlier then return earlier end
local limit = tonumber(ARGV[2])
local active = redis.call('ZCARD', index('queued')) + redis.call('ZCARD', index('running'))
if active >= limit then return {'full', tostring(active)} end
local seq = redis.call('INCR', prefix .. 'sequence')
created = string.format('%d', now())
redis.call('HSET', record, 'id', id, 'seq', seq, 'state', 'queued', 'attempt', 0,
  'request', ARGV[3], 'request_id', ARGV[4], 'owner', ARGV[5], 'created_at', created)
add_to('all', seq, ARGV[5])
add_to('queued', seq, ARGV[5])
emit('queued', '{}')
if fingerprint ~= '' then settle(KEYS[4], fingerprint, id, ARGV[7]) end
return {'ok', created}
"""
)

# ARGV: id, worker, nonce of this call, lease in ms, most attempts
START = (
    _PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt', 'lease_until', 'nonce')
local state, attempt, lease_until, nonce = found[1], found[2], found[3], found[4]
if not state then return {'missing'} end
if state == 'running' and nonce == ARGV[3] then return {'ok', attempt} end
if state == 'running' then
  if tonumber(lease_until) > now() then return {'conflict', state} end
  sweep(attempt, ARGV[4] * 2)
elseif state ~= 'queued' then
  return {'conflict', state}
end
if used() >= tonumber(ARGV[5]) then return {'exhausted', state} end
attempt = tostring(tonumber(attempt) + 1)
if state == 'queued' then move('queued', 'running') end
redis.call('HSET', record, 'attempt', attempt, 'worker', ARGV[2], 'nonce', ARGV[3],
  'lease_until', now() + ARGV[4], 'started_at', now())
redis.call('HDEL', record, 'progress')
emit('started', cjson.encode({attempt = tonumber(attempt)}))
return {'ok', attempt}
"""
)

# ARGV: id, attempt, lease in ms
HEARTBEAT = (
    _PRELUDE
    + """
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
redis.call('HSET', record, 'lease_until', now() + ARGV[3])
return {'ok'}
"""
)

# ARGV: id, attempt, progress JSON
PROGRESS = (
    _PRELUDE
    + """
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
redis.call('HSET', record, 'progress', ARGV[3])
emit('progress', ARGV[3])
return {'ok'}
"""
)

# ARGV: id, attempt, state to reach, field to set, its JSON, seconds to keep, sweep delay in ms
FINISH = (
    _PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt')
if found[1] == ARGV[3] and found[2] == ARGV[2] then return {'ok'} end
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
redis.call('HSET', record, ARGV[4], ARGV[5])
finish('running', ARGV[3], ARGV[6])
emit(ARGV[3], ARGV[5])
redis.call('EXPIRE', events, ARGV[6])
if ARGV[3] ~= 'succeeded' then sweep(ARGV[2], ARGV[7]) end
return {'ok'}
"""
)

# ARGV: id, attempt, lease in ms; the attempt no longer counts
RELEASE = (
    _PRELUDE
    + """
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
move('running', 'queued')
redis.call('HDEL', record, 'lease_until', 'nonce', 'progress', 'worker')
redis.call('HINCRBY', record, 'released', 1)
sweep(ARGV[2], ARGV[3] * 2)
emit('requeued', cjson.encode({reason = 'released'}))
return {'ok'}
"""
)

# ARGV: id, seconds to keep, lease in ms
CANCEL = (
    _PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt', 'lease_until')
local state = found[1]
if not state then return {'missing'} end
if state ~= 'queued' and state ~= 'running' then return {'conflict', state} end
redis.call('HSET', record, 'cancel_requested', 1)
if state == 'running' then
  redis.call('ZADD', prefix .. 'canceling', found[3], id)
  sweep(found[2], ARGV[3] * 2)
end
finish(state, 'canceled', ARGV[2])
emit('canceled', '{}')
redis.call('EXPIRE', events, ARGV[2])
return {'ok'}
"""
)

# ARGV: id, attempt
ACKNOWLEDGE_CANCEL = (
    _PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt')
if found[1] == 'canceled' and found[2] == ARGV[2] then
  redis.call('ZREM', prefix .. 'canceling', id)
end
return {'ok'}
"""
)

# ARGV: id, most attempts, failure JSON, seconds to keep, lease in ms
EXPIRE_LEASE = (
    _PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt', 'lease_until')
if found[1] ~= 'running' or tonumber(found[3]) > now() then return {'alive'} end
sweep(found[2], ARGV[5] * 2)
if used() >= tonumber(ARGV[2]) then
  redis.call('HSET', record, 'failure', ARGV[3])
  finish('running', 'failed', ARGV[4])
  emit('failed', ARGV[3])
  redis.call('EXPIRE', events, ARGV[4])
  return {'failed', found[2]}
end
move('running', 'queued')
redis.call('HDEL', record, 'lease_until', 'nonce', 'progress', 'worker')
emit('requeued', cjson.encode({reason = 'worker_lost'}))
return {'requeued', found[2]}
"""
)
