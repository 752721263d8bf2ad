//! Admin commands as an input names them: mostly sensible, so that the search gets behind the first check.

use arbitrary::Arbitrary;

use crate::edge::Edge;
use crate::guest::{self, Place};

/// One admin command.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Admin {
    Any { opcode: u8, flags: u8, nsid: u8, dwords: [Edge; 6] },
    CreateCq { qid: u8, size: Edge, flags: u8, vector: u8 },
    CreateSq { qid: u8, size: Edge, flags: u8, cqid: u8 },
    DeleteSq(u8),
    DeleteCq(u8),
    Identify { cns: u8, cntid: u8, nsid: u8, cdw11: Option<Edge>, uuid: Option<Edge> },
    GetLog { lid: u8, numd: Edge, lsp: u8, offset: Edge, numdu: Option<Edge>, nsid: u8 },
    SetFeatures { fid: u8, value: Edge, more: Edge, save: bool, nsid: u8 },
    GetFeatures { fid: u8, select: u8, cdw11: Edge, nsid: u8 },
    Aer,
    Abort { sqid: u8, back: u8 },
    KeepAlive,
    DoorbellBuffer,
    Create { csi: Option<u8> },
    Delete { nsid: u8 },
    Attach { nsid: u8, detach: bool },
    Format { nsid: u8, lbaf: u8, ses: u8, more: Option<Edge> },
    Sanitize { action: u8, flags: u8, pattern: Edge },
    SelfTest { nsid: u8, code: u8 },
    LbaStatus { slba: Edge, mndw: Edge, action: u8, nsid: u8 },
}

/// What a data page is filled with before a command.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Page {
    /// Identify Namespace as for Namespace Management.
    Namespace { blocks: Edge, capacity: Option<Edge>, flbas: u8, odd: Option<(u8, u8)> },
    /// Controller list.
    Controllers { count: u8, id: u8 },
    /// Keep alive, host identifier, LBA ranges, timestamp: words.
    Words([Edge; 4]),
}

impl Page {
    pub fn store(self, at: Place) {
        let mut page = [0_u8; 4096];
        match self {
            Self::Namespace { blocks, capacity, flbas, odd } => {
                page[0..8].copy_from_slice(&(blocks.0 & 0x1_ffff).to_le_bytes());
                page[8..16]
                    .copy_from_slice(&capacity.map_or(blocks.0 & 0x1_ffff, |edge| edge.0).to_le_bytes());
                page[26] = flbas & 3;
                if let Some((at, value)) = odd {
                    page[usize::from(at)] = value;
                }
            }
            Self::Controllers { count, id } => {
                page[0] = if count < 0xe0 { 1 } else { count };
                page[2] = if id < 0xe0 { 0 } else { id };
                page[3] = 0;
            }
            Self::Words(words) => {
                for (to, word) in page.chunks_exact_mut(8).zip(words) {
                    to.copy_from_slice(&word.0.to_le_bytes());
                }
            }
        }
        guest::poke(at.address() & !7, &page);
    }
}

fn nsid_of(byte: u8) -> u32 {
    match byte % 16 {
        0..=5 => 1,
        6 | 7 => 2,
        8 => 3,
        9 => 32,
        10 => 33,
        11 => u32::MAX,
        12 => u32::MAX - 1,
        _ => 0,
    }
}

fn qid_of(byte: u8) -> u32 {
    if byte < 0xe8 { u32::from(byte % 6) } else { u32::from(byte) * 0x101 }
}

impl Admin {
    /// The command's dwords; `recent` gives identifiers of earlier commands.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one arm a command")]
    pub fn dwords(&self, prp1: Place, prp2: Place, recent: impl Fn(u8) -> u16) -> [u32; 16] {
        const FIDS: [u8; 20] =
            [1, 2, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0xe, 0xf, 0x10, 0x11, 0x16, 0x81, 0x82, 0x83, 0x80];
        const LIDS: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0xc, 0xd, 0x12, 0x13, 0x80, 0x81, 0xe];
        const CNS: [u8; 16] = [0, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x1c];
        let pick =
            |list: &[u8], byte: u8| if byte < 0xe0 { list[usize::from(byte) % list.len()] } else { byte };
        let mut d = [0_u32; 16];
        let (p1, p2) = (prp1.address(), prp2.address());
        (d[6], d[7]) = ((p1 & 0xffff_ffff) as u32, (p1 >> 32) as u32);
        (d[8], d[9]) = ((p2 & 0xffff_ffff) as u32, (p2 >> 32) as u32);
        match *self {
            Self::Any { opcode, flags, nsid, dwords } => {
                d[0] = u32::from(opcode) | u32::from(flags) << 8;
                d[1] = nsid_of(nsid);
                for (to, edge) in d[10..].iter_mut().zip(dwords) {
                    *to = edge.u32();
                }
            }
            Self::CreateCq { qid, size, flags, vector } => {
                d[0] = 5;
                d[10] = qid_of(qid) | u32::from(size.u16()) << 16;
                d[11] = u32::from(if flags < 0xe0 { flags & 2 | 1 } else { flags }) | u32::from(vector) << 16;
            }
            Self::CreateSq { qid, size, flags, cqid } => {
                d[0] = 1;
                d[10] = qid_of(qid) | u32::from(size.u16()) << 16;
                d[11] = u32::from(if flags < 0xe0 { 1 } else { flags }) | qid_of(cqid) << 16;
            }
            Self::DeleteSq(qid) => (d[0], d[10]) = (0, qid_of(qid)),
            Self::DeleteCq(qid) => (d[0], d[10]) = (4, qid_of(qid)),
            Self::Identify { cns, cntid, nsid, cdw11, uuid } => {
                (d[0], d[1]) = (6, nsid_of(nsid));
                d[10] = u32::from(pick(&CNS, cns)) | u32::from(cntid & 1) << 16;
                d[11] = cdw11.map_or(0, Edge::u32);
                d[14] = uuid.map_or(0, Edge::u32);
            }
            Self::GetLog { lid, numd, lsp, offset, numdu, nsid } => {
                (d[0], d[1]) = (2, if nsid < 0xc0 { u32::MAX } else { nsid_of(nsid) });
                d[10] = u32::from(pick(&LIDS, lid)) | u32::from(lsp) << 8 | u32::from(numd.u16()) << 16;
                d[11] = numdu.map_or(0, Edge::u32);
                (d[12], d[13]) = (offset.u32(), (offset.0 >> 32) as u32);
            }
            Self::SetFeatures { fid, value, more, save, nsid } => {
                (d[0], d[1]) = (9, if nsid < 0xc0 { 0 } else { nsid_of(nsid) });
                d[10] = u32::from(pick(&FIDS, fid)) | u32::from(save) << 31;
                (d[11], d[12]) = (value.u32(), more.u32());
            }
            Self::GetFeatures { fid, select, cdw11, nsid } => {
                (d[0], d[1]) = (10, if nsid < 0xc0 { 0 } else { nsid_of(nsid) });
                d[10] = u32::from(pick(&FIDS, fid)) | u32::from(select) << 8;
                d[11] = cdw11.u32();
            }
            Self::Aer => d[0] = 0x0c,
            Self::Abort { sqid, back } => {
                (d[0], d[10]) = (8, qid_of(sqid % 4) | u32::from(recent(back)) << 16);
            }
            Self::KeepAlive => d[0] = 0x18,
            Self::DoorbellBuffer => d[0] = 0x7c,
            Self::Create { csi } => {
                d[0] = 0x0d;
                d[11] = u32::from(csi.unwrap_or(0)) << 24;
            }
            Self::Delete { nsid } => (d[0], d[1], d[10]) = (0x0d, nsid_of(nsid), 1),
            Self::Attach { nsid, detach } => (d[0], d[1], d[10]) = (0x15, nsid_of(nsid), u32::from(detach)),
            Self::Format { nsid, lbaf, ses, more } => {
                (d[0], d[1]) = (0x80, nsid_of(nsid));
                d[10] = u32::from(lbaf % 3) | u32::from(ses % 4) << 9 | more.map_or(0, Edge::u32);
            }
            Self::Sanitize { action, flags, pattern } => {
                d[0] = 0x84;
                d[10] = u32::from(action % 6) | u32::from(flags) << 3;
                d[11] = pattern.u32();
            }
            Self::SelfTest { nsid, code } => {
                const CODES: [u32; 5] = [1, 2, 0xf, 0xe, 0];
                (d[0], d[1], d[10]) = (0x14, nsid_of(nsid), CODES[usize::from(code) % 5]);
            }
            Self::LbaStatus { slba, mndw, action, nsid } => {
                (d[0], d[1]) = (0x86, nsid_of(nsid));
                (d[10], d[11]) = (slba.u32(), (slba.0 >> 32) as u32);
                d[12] = mndw.u32();
                d[13] = u32::from(action) << 24 | u32::from(action);
            }
        }
        d
    }
}
