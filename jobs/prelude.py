"""What the Lua transitions share: indices, events, the line, batches' counts, the outbox.

Keys given to each script: the record's hash, its event stream, and the prefix of the indices
(sorted sets of ids by sequence number, one per state and one of all). Times are Redis' own, in
milliseconds, so that no two machines' clocks are ever compared.
"""

from __future__ import annotations

PRELUDE = """
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

-- the line of waiting jobs, all and by group, in the order of their turns (jobs/schedule.py)
local function stand_in_line()
  local found = redis.call('HMGET', record, 'turn', 'group')
  redis.call('ZADD', prefix .. 'line', found[1] or 0, id)
  redis.call('ZADD', prefix .. 'line:' .. (found[2] or ''), found[1] or 0, id)
end

local function leave_the_line()
  redis.call('ZREM', prefix .. 'line', id)
  redis.call('ZREM', prefix .. 'line:' .. (redis.call('HGET', record, 'group') or ''), id)
end

local function move(from, to)
  if to == 'queued' then stand_in_line() elseif from == 'queued' then leave_the_line() end
  redis.call('HSET', record, 'state', to)
  local found = redis.call('HMGET', record, 'seq', 'owner', 'batch')
  if found[3] then
    redis.call('HINCRBY', prefix .. 'batch:' .. found[3], from, -1)
    redis.call('HINCRBY', prefix .. 'batch:' .. found[3], to, 1)
  end
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

-- leave word in the outbox, if anybody wants to be told
local function tell(kind, about, owner, state, at, url, failure)
  if url == '' and redis.call('EXISTS', prefix .. 'webhooks:' .. owner) == 0 then return end
  redis.call('XADD', prefix .. 'outbox', '*', 'kind', kind, 'id', about, 'owner', owner,
    'state', state, 'at', at, 'url', url, 'failure', failure)
end

-- with its last job a batch ends; the reconciler then writes its manifest
local function end_batch(ttl_s)
  local batch = redis.call('HGET', record, 'batch')
  local key = batch and prefix .. 'batch:' .. batch
  local found = batch and redis.call('HMGET', key, 'queued', 'running', 'owner')
  if not batch or tonumber(found[1] or 0) + tonumber(found[2] or 0) > 0 then return end
  redis.call('HSET', key, 'finished_at', now())
  redis.call('EXPIRE', key, ttl_s)
  redis.call('EXPIRE', key .. ':items', ttl_s)
  redis.call('SET', key .. ':owner', found[3], 'EX', ttl_s + tombstone_s)
  redis.call('SADD', prefix .. 'batches:ended', batch)
  tell('batch', batch, found[3], 'finished', now(), '', '')
end

-- a job of a batch is told of with its batch
local function notify(state, owner)
  local found = redis.call('HMGET', record, 'webhook_url', 'failure', 'finished_at', 'batch')
  if found[4] and not found[1] then return end
  tell('generation', id, owner, state, found[3], found[1] or '', found[2] or '')
end

local function finish(from, to, ttl_s)
  move(from, to)
  redis.call('HSET', record, 'finished_at', now())
  redis.call('HDEL', record, 'lease_until', 'previews')
  redis.call('EXPIRE', record, ttl_s)
  redis.call('ZADD', prefix .. 'expiring', now() + ttl_s * 1000, id)
  local owner = redis.call('HGET', record, 'owner') or 'local'
  redis.call('SET', record .. ':owner', owner, 'EX', ttl_s + tombstone_s)
  notify(to, owner)
  end_batch(ttl_s)
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
