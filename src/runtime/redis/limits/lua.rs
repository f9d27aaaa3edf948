//! The scripts of shared limits: one leases, the other keeps track of the processes.
//!
//! Times are microseconds of the server's clock. What is leased is counted in buckets by the time
//! at which it leaves a window: one window after the slice has ended, rounded up to a 1,024th of
//! the window. A limit so takes some thousand fields at most, however much it allows.
//!
//! | key | holds |
//! |---|---|
//! | `{…}` | a hash: the epoch; since when, of which server, whom it waits for; how many each process knows of |
//! | `{…}:members` | processes, by when they last had an answer |
//! | `{…}:<epoch>:<key>` | a hash: buckets, sums and how far they are swept, limit by limit |
//! | `{…}:<epoch>:<key>:line` | processes that want more than there is, by since when |
//!
//! An epoch is the time during which nothing of this was lost. Whoever finds it over, by the server's
//! `run_id`, the clock or the lack of it, begins another one, in which nothing is leased until all
//! that had a part in the last one have told what they have used, or could have. The same goes for
//! a server on which nobody was heard for a second: it was stopped.
//!
//! A process that has had no answer for a second may be spending its share on its own: the share is
//! kept for it, by the number of processes that it goes by, until it has told what it used or is
//! taken for gone. What it hears, not what it says, keeps it among the others: a process whose
//! answers are lost or late must not be on its own before the store knows.

/// KEYS epoch, members, state, line; ARGV process, epoch, not after or 0, permits, fewest, validity,
/// silent after, gone after, number of limits, their counts and periods, number of what comes back,
/// its slices and permits, ages and amounts of what was used. `ok`, the time, permits, the slice, how
/// long to wait with the next question, what is left; or why not, and the time.
pub(in super::super) const LEASE: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local about = redis.call('HMGET', KEYS[1], 'epoch', 'expect', 'until', 'came')
if about[1] ~= ARGV[2] then return {'epoch', now} end
if tonumber(ARGV[3]) > 0 and now > tonumber(ARGV[3]) then return {'late', now} end
local me, state = ARGV[1], KEYS[3]
local want, least, validity = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local silent, gone, count = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local shut = false
if about[2] then
  shut = now < tonumber(about[3]) and tonumber(about[4] or 0) < tonumber(about[2])
  if not shut then redis.call('HDEL', KEYS[1], 'expect', 'until') end
end
local shares = {}
local quiet = string.format('(%.0f', now - silent)
for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], now - gone, quiet)) do
  if other ~= me then
    shares[#shares + 1] = tonumber(redis.call('HGET', KEYS[1], 'of' .. other) or 1)
  end
end

local limits, longest, next = {}, 0, 10 + 2 * count
for i = 1, count do
  local allowed, period = tonumber(ARGV[8 + 2 * i]), tonumber(ARGV[9 + 2 * i])
  local grain = math.max(1000, math.ceil(period / 1024))
  local name, head = ARGV[9 + 2 * i] .. ':', math.floor(now / grain)
  local known = redis.call('HMGET', state, name .. 's', name .. 't')
  local sum, tail = tonumber(known[1] or 0), tonumber(known[2] or head)
  local reach = math.ceil((period + 3600000000) / grain) + 2
  if sum > 0 then
    local at, last = tail + 1, math.min(head, tail + reach)
    while at <= last and sum > 0 do
      local names = {}
      for b = at, math.min(at + 255, last) do names[#names + 1] = name .. b end
      local found, over = redis.call('HMGET', state, unpack(names)), {}
      for j = 1, #names do
        if found[j] then sum = sum - found[j]; over[#over + 1] = names[j] end
      end
      if #over > 0 then redis.call('HDEL', state, unpack(over)) end
      at = at + 256
    end
  end
  limits[i] = {allowed = allowed, period = period, grain = grain, name = name, head = head,
    sum = sum, reach = reach}
  if period > longest then longest = period end
end
local function add(limit, ends, permits)
  local bucket = math.floor((ends + limit.period) / limit.grain) + 1
  if bucket <= limit.head then return end
  local name = limit.name .. bucket
  if permits < 0 then
    permits = -math.min(-permits, tonumber(redis.call('HGET', state, name) or 0))
    if permits == 0 then return end
  end
  if redis.call('HINCRBY', state, name, permits) == 0 then redis.call('HDEL', state, name) end
  limit.sum = limit.sum + permits
end
local backs = tonumber(ARGV[next])
for i = 1, backs do
  for j = 1, count do add(limits[j], tonumber(ARGV[next + 2 * i - 1]), -ARGV[next + 2 * i]) end
end
for i = next + 1 + 2 * backs, #ARGV, 2 do
  for j = 1, count do add(limits[j], now - ARGV[i], tonumber(ARGV[i + 1])) end
end

local free = math.huge
for j = 1, count do
  local kept = 0
  for _, among in ipairs(shares) do kept = kept + math.floor(limits[j].allowed / among) end
  free = math.min(free, limits[j].allowed - limits[j].sum - kept)
end
local granted, wait = 0, 0
if want == 0 then
  redis.call('ZREM', KEYS[4], me)
  redis.call('HDEL', state, 'c' .. me)
else
  local ahead, rivals, mine = 0, 0, redis.call('ZSCORE', KEYS[4], me)
  local line = redis.call('ZRANGE', KEYS[4], 0, 63, 'WITHSCORES')
  for i = 1, #line, 2 do
    if line[i] ~= me then
      local last = tonumber(redis.call('ZSCORE', KEYS[2], line[i]) or 0)
      if last < now - gone then
        redis.call('ZREM', KEYS[4], line[i])
        redis.call('HDEL', state, 'c' .. line[i])
      elseif last >= now - silent then
        rivals = rivals + 1
        if not mine or tonumber(line[i + 1]) < tonumber(mine) then
          ahead = ahead + tonumber(redis.call('HGET', state, 'c' .. line[i]) or 1)
        end
      end
    end
  end
  local room = free - ahead
  if not shut and room >= least then
    granted = least + math.min(want - least, math.floor((room - least) / (rivals + 1)))
  end
  if granted < want then
    if granted > 0 then
      redis.call('ZADD', KEYS[4], now, me)
      least = 1
    else
      redis.call('ZADD', KEYS[4], 'NX', now, me)
    end
    redis.call('HSET', state, 'c' .. me, least)
    redis.call('PEXPIRE', KEYS[4], 60000)
    local need = math.max(1, least - (room - granted))
    for j = 1, count do
      local limit = limits[j]
      local missing = need - math.max(0, (limit.allowed - limit.sum) - free)
      local at, sum = limit.head + 1, limit.sum
      local last = limit.head + limit.reach
      while missing > 0 and sum > 0 and at <= last do
        local names = {}
        for b = at, math.min(at + 63, last) do names[#names + 1] = limit.name .. b end
        local found = redis.call('HMGET', state, unpack(names))
        for k = 1, #names do
          if found[k] and missing > 0 then
            missing, sum = missing - found[k], sum - found[k]
            wait = math.max(wait, (at + k - 1) * limit.grain - now)
          end
        end
        at = at + 64
      end
      -- Kept for somebody who may be heard again or not.
      if missing > 0 then wait = math.max(wait, 20000) end
    end
    if shut then wait = 20000 end
    wait = math.max(wait, 1000)
  else
    redis.call('ZREM', KEYS[4], me)
    redis.call('HDEL', state, 'c' .. me)
  end
end
local ends = now + validity
for j = 1, count do
  local limit = limits[j]
  if granted > 0 then add(limit, ends, granted) end
  redis.call('HSET', state, limit.name .. 's', limit.sum, limit.name .. 't', limit.head)
end
redis.call('PEXPIRE', state, math.ceil((longest + validity) / 1000) + 2000)
return {'ok', now, granted, ends, wait, math.max(0, free - granted)}
";

/// KEYS epoch, members; ARGV process, the epoch that it knows or empty, one that nobody has used,
/// how many processes it knows of if it has used anything or 0, the time of the last answer to a
/// beat that it got, what it does, silent after, gone after, TTL in ms, not after or 0, the time of
/// the last answer that it got, how long others may take to be heard. The epoch, the time, whether the process is a member, how many are.
pub(in super::super) const BEAT: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local me, known, peers = ARGV[1], ARGV[2], tonumber(ARGV[4])
local how, silent, gone = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local about = redis.call('HMGET', KEYS[1], 'epoch', 'expect', 'born', 'last', 'run')
local epoch, last = about[1], tonumber(about[4] or 0)
local function forget(from, to)
  for _, one in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], from, to)) do
    redis.call('HDEL', KEYS[1], 'of' .. one)
    redis.call('ZREM', KEYS[2], one)
  end
end
if how == 'leave' then
  if epoch == known then
    redis.call('ZREM', KEYS[2], me)
    redis.call('HDEL', KEYS[1], 'of' .. me)
  end
  return {known, now, 0, 0}
end
-- Carried out late by a server that was stopped, it is of a process that may be on its own by now.
if how == 'join' and tonumber(ARGV[10]) > 0 and now > tonumber(ARGV[10]) then how = 'look' end

-- Whom to wait for: all that the caller knows of, and all that were here.
local waits = math.max(peers, redis.call('ZCARD', KEYS[2]))
local info = redis.pcall('INFO', 'server')
if type(info) ~= 'string' then info = '' end
local run = string.match(info, 'run_id:(%w+)') or ''
-- Another server, or the same one started again, may not have the last of what was written; nor
-- has one that was set back, or whose clock was.
local other = run ~= '' and about[5] and run ~= about[5]
if epoch and (other or last > now + 1000000 or epoch == known and last < tonumber(ARGV[5])) then
  epoch = false
end
if not epoch then
  epoch = ARGV[3]
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'born', now)
  local till = now + gone
  -- A newcomer cannot tell a store that is new from one that has forgotten what others know: the
  -- first of those to be heard says how many they are.
  if waits == 0 then waits, till = 1000000, now + tonumber(ARGV[12]) end
  redis.call('HSET', KEYS[1], 'expect', waits, 'until', till)
else
  local before = tonumber(about[2] or 0)
  if before == 1000000 then before = 0 end
  if epoch ~= known and peers > 0 and now < tonumber(about[3]) + gone then
    local till = tonumber(about[3]) + gone
    redis.call('HSET', KEYS[1], 'expect', math.max(peers, before), 'until', till)
  end
  if last < now - silent and math.max(waits, before) > 0 then
    -- Nobody was heard: all of them may have been on their own, however long it took.
    forget('-inf', '+inf')
    waits = math.max(waits, before)
    redis.call('HSET', KEYS[1], 'expect', waits, 'until', now + gone, 'came', 0)
  end
end
redis.call('HSET', KEYS[1], 'last', now)
-- A user may be allowed to lease, and not to ask for this.
if run ~= '' then redis.call('HSET', KEYS[1], 'run', run) end
forget('-inf', now - gone)

local joined = 0
if how == 'join' and (epoch == known or peers == 0) then
  joined = 1
  -- Who does not get the answers goes on its own, so it is heard when it has got one. Who was not
  -- heard for long is here all the same, and its share is kept.
  local heard = now
  if peers > 0 then heard = math.min(now, math.max(tonumber(ARGV[11]), now - silent - 1)) end
  if redis.call('ZADD', KEYS[2], heard, me) == 1 and peers > 0 then
    redis.call('HINCRBY', KEYS[1], 'came', 1)
  end
  local all = redis.call('ZCARD', KEYS[2])
  -- On its own it would go by what it knows now, or by what it is told now.
  if peers > 0 then all = math.min(all, peers) end
  redis.call('HSET', KEYS[1], 'of' .. me, all)
end
redis.call('PEXPIRE', KEYS[1], ARGV[9])
redis.call('PEXPIRE', KEYS[2], ARGV[9])
return {epoch, now, joined, redis.call('ZCARD', KEYS[2])}
";
