//! What has to happen in Redis in one step.
//!
//! A generation is a text that is never used twice: `c…` since it was first
//! needed, `i…` since it was outdated. A value carries the generations of its
//! namespace and its tags; it is good as long as they are still those. So a
//! namespace of any size is outdated by writing one key, and a generation that was
//! lost outdates what depended on it.
//!
//! So does a lease: it carries those that were read before the load began. What is
//! loaded under it is stored only if they are still those, and others need not
//! wait for a load whose result is outdated already.
//!
//! A value also carries when it was born, by the server's clock, and who wrote it: what a process
//! was to outdate while Redis was away concerns only what was there by then, and may be outdated
//! up to a moment (`…<` microseconds).
//!
//! A generation outlives the values that carry it. What writes is refused when
//! memory is full only as long as nothing has been written: so the one that takes
//! memory comes first. A user who may not publish is told so by the reply: what he has written is
//! written.

use std::sync::LazyLock;

use redis::Script;

use super::limits::lua;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident: $source:expr;)*) => {
        $($(#[$doc])* pub(super) static $name: LazyLock<Lua> = LazyLock::new(|| Lua::new($source));)*
        /// Makes all of them known to a server.
        pub(super) fn all() -> Vec<&'static Lua> {
            vec![$(&*$name),*]
        }
    };
}

/// A script and its hash.
pub(super) struct Lua {
    pub(super) source: &'static str,
    pub(super) hash: String,
}

impl Lua {
    fn new(source: &'static str) -> Self {
        Self { source, hash: Script::new(source).get_hash().to_owned() }
    }
}

scripts! {
    /// KEYS value, lease, generations of the namespace and the tags; ARGV value, TTL in ms or 0,
    /// token or empty, a fresh generation, channel, message for others, message that the lease
    /// is over, writer, birth or empty, tags. 0 if it was refused, 2 if others could not be told.
    SET: "
local token, ttl = ARGV[3], tonumber(ARGV[2])
local parts, made, left = {}, {}, {}
for i = 3, #KEYS do
  local gen = redis.call('GET', KEYS[i])
  if gen then left[i] = redis.call('PTTL', KEYS[i]) else gen = 'c' .. ARGV[4]; made[i] = gen end
  if i > 3 then local tag = ARGV[i + 6]; parts[#parts + 1] = #tag .. ':' .. tag end
  parts[#parts + 1] = #gen .. ':' .. gen
end
local stamp = table.concat(parts)
if token ~= '' then
  local held = redis.call('GET', KEYS[2])
  if held ~= token .. stamp then
    if held and string.sub(held, 1, #token) == token then
      redis.call('DEL', KEYS[2])
      redis.pcall('PUBLISH', ARGV[5], ARGV[7])
    end
    return 0
  end
end
local born = ARGV[9]
if born == '' then local t = redis.call('TIME'); born = t[1] .. string.format('%06d', t[2]) end
local label = born .. '@' .. ARGV[8] .. '|' .. stamp
local done = redis.pcall('HSET', KEYS[1], 'v', ARGV[1], 'g', label)
if type(done) == 'table' and done.err then
  if not string.find(done.err, 'WRONGTYPE') then return done end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'v', ARGV[1], 'g', label)
end
if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl) else redis.call('PERSIST', KEYS[1]) end
for i = 3, #KEYS do
  if made[i] then
    if ttl > 0 then redis.call('SET', KEYS[i], made[i], 'PX', ttl + 86400000)
    else redis.call('SET', KEYS[i], made[i]) end
  elseif left[i] >= 0 then
    if ttl == 0 then redis.call('PERSIST', KEYS[i])
    elseif left[i] < ttl + 3600000 then redis.call('PEXPIRE', KEYS[i], ttl + 86400000) end
  end
end
redis.call('DEL', KEYS[2])
local told = redis.pcall('PUBLISH', ARGV[5], ARGV[6])
return type(told) == 'number' and 1 or 2
";
    /// KEYS a generation; ARGV a fresh one, TTL in ms or 0. The generation, made if need be.
    GENERATION: "
local gen, ttl = redis.call('GET', KEYS[1]), tonumber(ARGV[2])
if not gen then
  gen = 'c' .. ARGV[1]
  if ttl > 0 then redis.call('SET', KEYS[1], gen, 'PX', ttl + 86400000)
  else redis.call('SET', KEYS[1], gen) end
  return gen
end
local left = redis.call('PTTL', KEYS[1])
if left >= 0 then
  if ttl == 0 then redis.call('PERSIST', KEYS[1])
  elseif left < ttl + 3600000 then redis.call('PEXPIRE', KEYS[1], ttl + 86400000) end
end
return gen
";
    /// KEYS value, lease; ARGV value, TTL in ms or 0, token or empty, generations, channel,
    /// message, message that the lease is over, writer, birth or empty. 0 if it was refused, 2 if
    /// others could not be told.
    STORE: "
local token, ttl = ARGV[3], tonumber(ARGV[2])
if token ~= '' then
  local held = redis.call('GET', KEYS[2])
  if held ~= token .. ARGV[4] then
    if held and string.sub(held, 1, #token) == token then
      redis.call('DEL', KEYS[2])
      redis.pcall('PUBLISH', ARGV[5], ARGV[7])
    end
    return 0
  end
end
local born = ARGV[9]
if born == '' then local t = redis.call('TIME'); born = t[1] .. string.format('%06d', t[2]) end
local label = born .. '@' .. ARGV[8] .. '|' .. ARGV[4]
local done = redis.pcall('HSET', KEYS[1], 'v', ARGV[1], 'g', label)
if type(done) == 'table' and done.err then
  if not string.find(done.err, 'WRONGTYPE') then return done end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'v', ARGV[1], 'g', label)
end
if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl) else redis.call('PERSIST', KEYS[1]) end
redis.call('DEL', KEYS[2])
local told = redis.pcall('PUBLISH', ARGV[5], ARGV[6])
return type(told) == 'number' and 1 or 2
";
    /// KEYS value, lease; ARGV channel, message. The generations of what was there, or nil; 2 if
    /// others could not be told.
    DELETE: "
local had = redis.pcall('HGET', KEYS[1], 'g')
if type(had) == 'table' then had = false end
redis.call('DEL', KEYS[1], KEYS[2])
local told = redis.pcall('PUBLISH', ARGV[1], ARGV[2])
return {had, type(told) == 'number' and 1 or 2}
";
    /// KEYS a generation; ARGV a fresh one, channel, message. 2 if others could not be told.
    OUTDATE: "
local done = redis.pcall('SET', KEYS[1], 'i' .. ARGV[1], 'PX', 86400000)
if type(done) == 'table' and done.err then redis.call('DEL', KEYS[1]) end
local told = redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return type(told) == 'number' and 1 or 2
";
    /// A delete that is owed: KEYS value, lease; ARGV channel, message, the service that owes it, the
    /// number of its first change after, its age in microseconds, the time that it was at the
    /// latest by what the service knew or 0, how much earlier it may have been. What the service
    /// has written since has a later number, what others have written was born later: that stays.
    /// 2 if others could not be told.
    FORGET: "
local had = redis.pcall('HGET', KEYS[1], 'g')
if type(had) == 'string' then
  local born, writer, count = string.match(had, '^(%d+)@(%x+)-(%x+)|')
  if born and writer == ARGV[3] then
    if tonumber(count, 16) >= tonumber(ARGV[4]) then return 1 end
  elseif born then
    local t = redis.call('TIME')
    local now = t[1] * 1000000 + t[2]
    local limit, theirs = now - ARGV[5], tonumber(ARGV[6])
    if theirs - ARGV[7] > limit then limit = theirs end
    if tonumber(born) > limit and tonumber(born) <= now then return 1 end
  end
end
redis.call('DEL', KEYS[1], KEYS[2])
local told = redis.pcall('PUBLISH', ARGV[1], ARGV[2])
return type(told) == 'number' and 1 or 2
";
    /// An invalidation that is owed: KEYS a generation; ARGV channel, message, and age and times as
    /// above. 2 if others could not be told.
    CUT: "
local gen = redis.pcall('GET', KEYS[1])
local name, before
if type(gen) == 'string' then name, before = string.match(gen, '^([^<]*)<?(%d*)$') end
if name then
  local t = redis.call('TIME')
  local now = t[1] * 1000000 + t[2]
  local limit, theirs = now - ARGV[3], tonumber(ARGV[4])
  if theirs - ARGV[5] > limit then limit = theirs end
  if limit > now then limit = now end
  if before ~= '' and tonumber(before) >= limit then return 1 end
  local done = redis.pcall('SET', KEYS[1], name .. '<' .. string.format('%.0f', limit), 'KEEPTTL')
  if type(done) == 'table' and done.err then redis.call('DEL', KEYS[1]) end
else
  redis.call('DEL', KEYS[1])
end
local told = redis.pcall('PUBLISH', ARGV[1], ARGV[2])
return type(told) == 'number' and 1 or 2
";
    /// KEYS value; ARGV its generations. Removes it if it still carries them.
    DISCARD: "
if redis.call('HGET', KEYS[1], 'g') == ARGV[1] then return redis.call('UNLINK', KEYS[1]) end
return 0
";
    /// KEYS value, lease; ARGV token, generations, milliseconds, another's lease that is void or
    /// empty. Whether the lease was given, the lease that stands there, how long it still lasts,
    /// the value, its generations, how long it still lives, the time in microseconds.
    LEASE: "
local mine = ARGV[1] .. ARGV[2]
local now = redis.call('TIME')
local given = redis.call('SET', KEYS[2], mine, 'NX', 'PX', ARGV[3])
if not given and ARGV[4] ~= '' and redis.call('GET', KEYS[2]) == ARGV[4] then
  given = redis.call('SET', KEYS[2], mine, 'PX', ARGV[3])
end
local held = redis.pcall('HMGET', KEYS[1], 'v', 'g')
if held.err then held = {false, false} end
return {given and 1 or 0, redis.call('GET', KEYS[2]), redis.call('PTTL', KEYS[2]),
  held[1], held[2], redis.call('PTTL', KEYS[1]), now[1] .. string.format('%06d', now[2])}
";
    /// KEYS lease; ARGV token, milliseconds. 0 if it was lost.
    RENEW: "
local held = redis.call('GET', KEYS[1])
if not held or string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
";
    /// KEYS lease; ARGV token, channel, message. 0 if it was not held, 2 if others could not be
    /// told.
    RELEASE: "
local held = redis.call('GET', KEYS[1])
if not held or string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
local told = redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return type(told) == 'number' and 1 or 2
";
    /// [`lua::LEASE`].
    LIMIT_LEASE: lua::LEASE;
    /// [`lua::BEAT`].
    LIMIT_BEAT: lua::BEAT;
}
