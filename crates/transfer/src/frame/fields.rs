//! The bodies of frames, field by field: read and written side by side.

use super::{
    Cancel, DATA_PAGES_MAX, Damage, Data, FEATURES, Frame, Hello, Kind, Limits, MAGIC, NAME_BYTES_MAX, PAGE,
    PAGES_MAX, Part, Payload, Plan, Reason, SETTINGS_BYTES_MAX, STREAMS_MAX, STRIPE_PAGES, Scope,
    TEXT_BYTES_MAX, VERSION_MAX, VERSION_MIN, Welcome, stream_of,
};
use crate::source::Run;

const RAW: u8 = 0;
const LZ4: u8 = 1;
const ZEROS: u8 = 2;
const HOLE: u8 = 3;

/// What is left of a body.
pub(super) struct Input<'a> {
    rest: &'a [u8],
    all: usize,
    kind: Kind,
}

impl<'a> Input<'a> {
    pub(super) fn of(rest: &'a [u8], kind: Kind) -> Self {
        Self { rest, all: rest.len(), kind }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Damage> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.size())?;
        self.rest = rest;
        Ok(taken)
    }

    fn size(&self) -> Damage {
        let (min, max) = self.kind.bytes();
        Damage::Size { kind: self.kind, bytes: self.all, min, max }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.size())?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Damage> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, Damage> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Damage> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Damage> {
        self.array().map(u64::from_le_bytes)
    }

    fn wrong<T>(&self, field: &'static str) -> Result<T, Damage> {
        Err(Damage::Field { kind: self.kind, field })
    }

    /// 0 or 1, in a field of so many bytes.
    pub(super) fn flag(&mut self, field: &'static str, bytes: usize) -> Result<bool, Damage> {
        match self.take(bytes)? {
            [flag @ (0 | 1), rest @ ..] if rest.iter().all(|byte| *byte == 0) => Ok(*flag == 1),
            _ => self.wrong(field),
        }
    }

    fn text(&mut self, bytes: usize, field: &'static str) -> Result<String, Damage> {
        match str::from_utf8(self.take(bytes)?) {
            // It is shown to people, and their terminals.
            Ok(text) if !text.contains(char::is_control) => Ok(text.to_owned()),
            _ => self.wrong(field),
        }
    }

    pub(super) fn end(&self) -> Result<(), Damage> {
        if self.rest.is_empty() { Ok(()) } else { self.wrong("length") }
    }
}

fn limits(input: &mut Input<'_>) -> Result<Limits, Damage> {
    let (window_bytes, data_pages, reserved) = (input.u32()?, input.u16()?, input.u16()?);
    if window_bytes < Limits::WINDOW_BYTES_MIN || !(1..=DATA_PAGES_MAX).contains(&data_pages) || reserved != 0
    {
        return input.wrong("limits");
    }
    Ok(Limits { window_bytes, data_pages })
}

pub(super) fn hello(input: &mut Input<'_>) -> Result<Hello, Damage> {
    if input.array()? != MAGIC {
        return Err(Damage::Magic);
    }
    let (min, max) = (input.u16()?, input.u16()?);
    // Before the fields that another version may have changed.
    if min > max || max < VERSION_MIN || min > VERSION_MAX {
        return Err(Damage::Version { min, max });
    }
    let (features, migration) = (input.u32()?, input.array()?);
    let (stream, streams, attempt) = (input.u16()?, input.u16()?, input.u32()?);
    if streams > STREAMS_MAX || stream >= streams {
        return input.wrong("stream");
    }
    // The last number is nobody's: it bars a stream.
    if attempt == 0 || attempt == u32::MAX {
        return input.wrong("attempt");
    }
    let limits = limits(input)?;
    Ok(Hello { version_min: min, version_max: max, features, migration, stream, streams, attempt, limits })
}

pub(super) fn welcome(input: &mut Input<'_>) -> Result<Welcome, Damage> {
    if input.array()? != MAGIC {
        return Err(Damage::Magic);
    }
    let (version, reserved) = (input.u16()?, input.u16()?);
    if !(VERSION_MIN..=VERSION_MAX).contains(&version) {
        return Err(Damage::Version { min: version, max: version });
    }
    let features = input.u32()?;
    if reserved != 0 || features & !FEATURES != 0 {
        return input.wrong("features");
    }
    Ok(Welcome { version, features, durable: input.u64()?, limits: limits(input)? })
}

pub(super) fn plan(input: &mut Input<'_>) -> Result<Plan, Damage> {
    let pages = input.u64()?;
    let (name, profile, settings) = (input.u16()?.into(), input.u16()?.into(), input.u32()?);
    if pages == 0 || pages > PAGES_MAX {
        return input.wrong("size");
    }
    let settings = usize::try_from(settings).unwrap_or(usize::MAX);
    if name > NAME_BYTES_MAX || profile > NAME_BYTES_MAX || settings > SETTINGS_BYTES_MAX {
        return input.wrong("lengths");
    }
    let (name, profile) = (input.text(name, "name")?, input.text(profile, "profile")?);
    Ok(Plan { pages, name, profile, settings: input.take(settings)?.to_vec() })
}

pub(super) fn data<'a>(input: &mut Input<'a>, scope: &Scope) -> Result<Data<'a>, Damage> {
    let (first, pages, encoding) = (input.u64()?, input.u32()?, input.u8()?);
    let (reserved, check) = (input.take(3)?, input.u32()?);
    let total = scope.pages;
    let run = Run::checked(first, pages, total).ok_or(Damage::Outside { first, pages, total })?;
    let stripe = first / STRIPE_PAGES;
    if (run.end() - 1) / STRIPE_PAGES != stripe || stream_of(first, scope.streams) != scope.stream {
        return Err(Damage::Stripe { first, stream: scope.stream });
    }
    if reserved != [0; 3] {
        return input.wrong("reserved bytes");
    }
    let bytes = input.take(input.rest.len())?;
    let plain = pages as usize * PAGE;
    let carried = pages <= scope.data_pages.into();
    let payload = match encoding {
        RAW if carried && bytes.len() == plain => Payload::Raw(bytes),
        LZ4 if carried && bytes.len() < plain => Payload::Lz4(bytes),
        ZEROS if bytes.is_empty() && check == 0 => Payload::Zeros,
        HOLE if bytes.is_empty() && check == 0 => Payload::Hole,
        RAW..=HOLE => return input.wrong("length"),
        _ => return input.wrong("encoding"),
    };
    Ok(Data { run, payload, check })
}

pub(super) fn part<'a>(input: &mut Input<'a>) -> Result<Part<'a>, Damage> {
    let last = input.flag("last", 4)?;
    Ok(Part { last, bytes: input.take(input.rest.len())? })
}

pub(super) fn cancel(input: &mut Input<'_>) -> Result<Cancel, Damage> {
    let reason = match input.u16()? {
        1 => Reason::Wish,
        2 => Reason::Refused,
        3 => Reason::Version,
        4 => Reason::Drive,
        other => Reason::Other(other),
    };
    Ok(Cancel { reason, text: input.text(input.rest.len(), "text")? })
}

fn code(reason: Reason) -> u16 {
    match reason {
        Reason::Wish => 1,
        Reason::Refused => 2,
        Reason::Version => 3,
        Reason::Drive => 4,
        Reason::Other(code) => code,
    }
}

fn put_limits(limits: Limits, out: &mut Vec<u8>) {
    out.extend(limits.window_bytes.to_le_bytes());
    out.extend(limits.data_pages.to_le_bytes());
    out.extend([0; 2]);
}

/// Puts a frame's fields behind its head; returns what follows them.
pub(super) fn put<'a>(frame: &Frame<'a>, out: &mut Vec<u8>) -> Result<&'a [u8], Damage> {
    match frame {
        Frame::Hello(hello) => {
            out.extend(MAGIC);
            out.extend(hello.version_min.to_le_bytes());
            out.extend(hello.version_max.to_le_bytes());
            out.extend(hello.features.to_le_bytes());
            out.extend(hello.migration);
            out.extend(hello.stream.to_le_bytes());
            out.extend(hello.streams.to_le_bytes());
            out.extend(hello.attempt.to_le_bytes());
            put_limits(hello.limits, out);
        }
        Frame::Welcome(welcome) => {
            out.extend(MAGIC);
            out.extend(welcome.version.to_le_bytes());
            out.extend([0; 2]);
            out.extend(welcome.features.to_le_bytes());
            out.extend(welcome.durable.to_le_bytes());
            put_limits(welcome.limits, out);
        }
        Frame::Plan(plan) => put_plan(plan, out)?,
        Frame::Data(data) => return Ok(put_data(data, out)),
        Frame::Map(part) | Frame::State(part) => {
            out.extend([part.last.into(), 0, 0, 0]);
            return Ok(part.bytes);
        }
        Frame::Barrier(barrier) | Frame::Ack(barrier) => {
            out.extend(barrier.id.to_le_bytes());
            out.extend(u64::from(barrier.flush).to_le_bytes());
        }
        Frame::Pace(bytes) => out.extend(bytes.to_le_bytes()),
        Frame::End(end) => {
            out.extend(end.pass.to_le_bytes());
            out.extend(u32::from(end.last).to_le_bytes());
        }
        Frame::Cancel(cancel) => {
            out.extend(code(cancel.reason).to_le_bytes());
            let text = cancel.text.replace(char::is_control, " ");
            out.extend(text.as_bytes().get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or(&[]));
        }
    }
    Ok(&[])
}

fn put_plan(plan: &Plan, out: &mut Vec<u8>) -> Result<(), Damage> {
    let too_long = |bytes: usize| {
        let (min, max) = Kind::Plan.bytes();
        Damage::Size { kind: Kind::Plan, bytes, min, max }
    };
    out.extend(plan.pages.to_le_bytes());
    for name in [&plan.name, &plan.profile] {
        if name.len() > NAME_BYTES_MAX {
            return Err(too_long(name.len()));
        }
        out.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
    }
    let settings = plan.settings.len();
    out.extend(u32::try_from(settings).map_err(|_| too_long(settings))?.to_le_bytes());
    out.extend(plan.name.as_bytes());
    out.extend(plan.profile.as_bytes());
    out.extend(&plan.settings);
    Ok(())
}

fn put_data<'a>(data: &Data<'a>, out: &mut Vec<u8>) -> &'a [u8] {
    let (encoding, bytes): (u8, &'a [u8]) = match data.payload {
        Payload::Raw(bytes) => (RAW, bytes),
        Payload::Lz4(bytes) => (LZ4, bytes),
        Payload::Zeros => (ZEROS, &[]),
        Payload::Hole => (HOLE, &[]),
    };
    out.extend(data.run.first().to_le_bytes());
    out.extend(data.run.pages().to_le_bytes());
    out.extend([encoding, 0, 0, 0]);
    out.extend(data.check.to_le_bytes());
    bytes
}
