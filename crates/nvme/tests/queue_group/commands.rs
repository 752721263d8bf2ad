//! Each I/O command, and each field that can be wrong.

use block::{Fault, Op};
use memory::Iova;
use nvme::namespace::SubsystemGate;
use nvme::sink::{GroupCommand, GroupEvent};
use spec::nvme::nvm::{CopyRange0, DsmRange};
use spec::nvme::prp_sgl::{SglDescriptor, SglType};
use spec::nvme::{Command, NSID_BROADCAST, NvmOpcode, Status};
use std::sync::Arc;
use zerocopy::IntoBytes;

use crate::world::{DATA, Mode, NS1_BLOCKS, World};

fn fused(mut command: Command, half: u8) -> Command {
    command.cdw0 = command.cdw0.with_fuse(half);
    command
}

/// NVM 1.1, 3.3.4 and 3.3.6.
#[test]
fn what_is_written_is_read_back() {
    for mode in [Mode::AtOnce, Mode::Later] {
        for segments_max in [1, 257] {
            let mut world = World::with_segments(segments_max);
            world.drive.mode = mode;
            let data: Vec<u8> = (0..8192_u32).map(|i| (i * 13 % 255) as u8).collect();
            // Two pages that are not neighbours, the first from an odd dword on.
            world.poke(DATA + 0x104, &data[..4096 - 0x104]);
            world.poke(DATA + 0x10000, &data[4096 - 0x104..4096]);
            let mut write = world.command(NvmOpcode::Write, 1, 64, 8);
            (write.prp1, write.prp2) = (DATA + 0x104, DATA + 0x10000);
            assert_eq!(world.run(&write), Status::SUCCESS);
            assert_eq!(world.drive.disk[64 * 512..72 * 512], data[..4096]);
            let mut read = world.command(NvmOpcode::Read, 1, 64, 8);
            (read.prp1, read.prp2) = (DATA + 0x20000, 0);
            assert_eq!(world.run(&read), Status::SUCCESS);
            assert_eq!(world.memory(DATA + 0x20000, 4096), data[..4096]);
            assert_eq!(world.drive.interrupts, [3, 3]);
        }
    }
}

/// Base 2.1, 4.3.1: a list over a page border, of 1 MiB.
#[test]
fn a_read_of_mdts_goes_through_a_chained_prp_list() {
    let mut world = World::new();
    let entries: Vec<u64> = (1..257).map(|i| DATA + 0x10_0000 + i * 8192).collect();
    // 6 entries to the end of the page, the last of them the pointer to the rest.
    world.poke(DATA - 48, entries[..5].as_bytes());
    world.poke(DATA - 8, &(DATA).to_le_bytes());
    world.poke(DATA, entries[5..].as_bytes());
    let mut read = world.command(NvmOpcode::Read, 2, 16, 256);
    (read.prp1, read.prp2) = (DATA + 0x10_0000 + 512, DATA - 48);
    assert_eq!(world.run(&read), Status::SUCCESS);
    let from = (4 << 20) + 16 * 4096;
    assert_eq!(world.memory(DATA + 0x10_0000 + 512, 3584), world.drive.disk[from..from + 3584]);
    assert_eq!(world.memory(entries[0], 4096), world.drive.disk[from + 3584..from + 7680]);
    assert_eq!(world.memory(entries[255], 512), world.drive.disk[from + (1 << 20) - 512..from + (1 << 20)]);
}

/// Base 2.1, 4.3.1 and figure 102; hostile inputs, rows 1 and 8.
#[test]
fn every_wrong_prp_gets_its_status() {
    let mut world = World::new();
    let cases = [
        (8, 0, 0, Status::INVALID_FIELD),
        (8, DATA + 2, 0, Status::PRP_OFFSET_INVALID),
        (16, DATA, 0, Status::INVALID_FIELD),
        (16, DATA, DATA + 4100, Status::PRP_OFFSET_INVALID),
        (8, 1 << 40, 0, Status::DATA_TRANSFER_ERROR),
        (16, DATA, 1 << 40, Status::DATA_TRANSFER_ERROR),
        (64, DATA, DATA + 4, Status::PRP_OFFSET_INVALID),
        (64, DATA, 1 << 40, Status::DATA_TRANSFER_ERROR),
        (8, u64::MAX - 3, 0, Status::DATA_TRANSFER_ERROR),
    ];
    for (blocks, prp1, prp2, status) in cases {
        let mut read = world.command(NvmOpcode::Read, 1, 0, blocks);
        (read.prp1, read.prp2) = (prp1, prp2);
        assert_eq!(world.run(&read).bare(), status, "{blocks} {prp1:x} {prp2:x}");
    }
    for (entry, status) in [(0, Status::INVALID_FIELD), (DATA + 8, Status::PRP_OFFSET_INVALID)] {
        world.poke(DATA, [DATA, entry, DATA, DATA, DATA, DATA, DATA].as_bytes());
        let mut read = world.command(NvmOpcode::Read, 1, 0, 64);
        (read.prp1, read.prp2) = (DATA, DATA);
        assert_eq!(world.run(&read).bare(), status);
    }
    assert!(world.drive.requests.is_empty(), "nothing of it reached the drive");
}

/// Base 2.1, 4.3.2; hostile inputs, row 1.
#[test]
fn every_wrong_sgl_gets_its_status() {
    let mut world = World::new();
    let block = |address, len| SglDescriptor::new(SglType::DataBlock, address, len);
    let last = |address, len| SglDescriptor::new(SglType::LastSegment, address, len);
    let next = |address, len| SglDescriptor::new(SglType::Segment, address, len);
    let list = DATA + 0x8000;
    let cases: [(SglDescriptor, &[SglDescriptor], Status); 13] = [
        (block(DATA + 1, 4096), &[], Status::SUCCESS),
        (block(DATA, 4095), &[], Status::DATA_SGL_LENGTH_INVALID),
        (block(DATA, 4097), &[], Status::DATA_SGL_LENGTH_INVALID),
        (block(1 << 40, 4096), &[], Status::DATA_TRANSFER_ERROR),
        (SglDescriptor::new(SglType::KeyedDataBlock, DATA, 4096), &[], Status::SGL_DESCRIPTOR_TYPE_INVALID),
        (last(list, 0), &[], Status::INVALID_SGL_SEGMENT_DESCRIPTOR),
        (last(list, 17), &[], Status::INVALID_SGL_SEGMENT_DESCRIPTOR),
        (last(list, 48), &[block(DATA, 1000), block(0, 0), block(DATA + 5000, 3096)], Status::SUCCESS),
        (last(list, 16), &[last(list, 16)], Status::INVALID_SGL_SEGMENT_DESCRIPTOR),
        (next(list, 16), &[block(DATA, 4096)], Status::INVALID_SGL_SEGMENT_DESCRIPTOR),
        (next(list, 32), &[last(list, 16), block(DATA, 4096)], Status::INVALID_SGL_DESCRIPTOR_COUNT),
        // A segment that is its own successor: hostile-inputs row 1.
        (next(list, 16), &[next(list, 16)], Status::INVALID_SGL_DESCRIPTOR_COUNT),
        (last(list, 0xffff_fff0), &[], Status::INVALID_SGL_DESCRIPTOR_COUNT),
    ];
    for (first, rest, status) in cases {
        world.poke(list, rest.as_bytes());
        let mut read = world.command(NvmOpcode::Read, 1, 0, 8);
        read.cdw0 = read.cdw0.with_psdt(1);
        read.set_sgl1(first);
        assert_eq!(world.run(&read).bare(), status, "{first:?} {rest:?}");
    }
    for psdt in [2, 3] {
        let mut read = world.command(NvmOpcode::Read, 1, 0, 8);
        read.cdw0 = read.cdw0.with_psdt(psdt);
        assert_eq!(world.run(&read).bare(), Status::INVALID_FIELD);
    }
}

/// Base 2.1, 4.3.2: Bit Bucket.
#[test]
fn a_bit_bucket_swallows_what_is_read_and_adds_nothing_to_a_write() {
    let mut world = World::new();
    let bucket = SglDescriptor::new(SglType::BitBucket, 0, 1024);
    let block = SglDescriptor::new(SglType::DataBlock, DATA, 3072);
    world.poke(DATA + 0x8000, [bucket, block].as_bytes());
    let mut read = world.command(NvmOpcode::Read, 1, 0, 8);
    read.cdw0 = read.cdw0.with_psdt(1);
    read.set_sgl1(SglDescriptor::new(SglType::LastSegment, DATA + 0x8000, 32));
    assert_eq!(world.run(&read), Status::SUCCESS);
    assert_eq!(world.memory(DATA, 3072), world.drive.disk[1024..4096]);
    let mut write = read;
    write.cdw0 = write.cdw0.with_opcode(NvmOpcode::Write.0);
    write.cdw12 = 5;
    assert_eq!(world.run(&write), Status::SUCCESS, "6 blocks: the bucket counts nothing");
    assert_eq!(world.memory(DATA, 3072), world.drive.disk[..3072]);
}

/// Base 2.1, 3.2.1 and figure 102; NVM 1.1, 3.1 and 3.3: the status the spec names, with DNR.
#[test]
fn every_wrong_field_gets_its_status() {
    let mut world = World::new();
    let mut check = |edit: &dyn Fn(&mut Command), status: Status| {
        let mut command = world.command(NvmOpcode::Write, 1, 0, 1);
        edit(&mut command);
        let got = world.run(&command);
        assert_eq!(got.bare(), status, "{command:?}");
        assert!(got.dnr(), "{command:?}");
    };
    check(&|c| c.cdw0.set_opcode(0x7f), Status::INVALID_OPCODE);
    check(&|c| c.cdw0.set_opcode(NvmOpcode::ReservationReport.0), Status::INVALID_OPCODE);
    check(&|c| c.nsid = 0, Status::INVALID_NAMESPACE_OR_FORMAT);
    check(&|c| c.nsid = NSID_BROADCAST, Status::INVALID_NAMESPACE_OR_FORMAT);
    check(&|c| c.nsid = 33, Status::INVALID_NAMESPACE_OR_FORMAT);
    check(&|c| c.nsid = 3, Status::INVALID_FIELD);
    check(&|c| c.set_slba(NS1_BLOCKS), Status::LBA_OUT_OF_RANGE);
    check(&|c| c.set_slba(u64::MAX), Status::LBA_OUT_OF_RANGE);
    check(&|c| (c.cdw10, c.cdw12) = (NS1_BLOCKS as u32 - 1, 1), Status::LBA_OUT_OF_RANGE);
    check(&|c| c.cdw12 = 2048, Status::INVALID_FIELD);
    check(&|c| c.cdw12 = 0xffff, Status::INVALID_FIELD);
    check(&|c| c.cdw12 = 1 << 20, Status::INVALID_FIELD);
    check(&|c| c.cdw0.set_fuse(3), Status::INVALID_FIELD);
    check(&|c| c.cdw0.set_fuse(2), Status::ABORTED_MISSING_FUSED);
    check(&|c| c.cdw0.set_fuse(1), Status::ABORTED_MISSING_FUSED);
}

/// Base 2.1, 5.1.12.1.2: the More bit is set exactly when the error log has more; a flood is not passed on.
#[test]
fn errors_are_reported_at_a_bounded_rate_and_more_says_so() {
    let mut world = World::new();
    let (mut reported, mut more) = (0, 0);
    for _ in 0..200 {
        let command = world.command(NvmOpcode::Read, 9, 0, 1);
        world.put(&command);
        world.ring();
        world.turn();
        more += world.reap().iter().filter(|completion| completion.status.more()).count();
        reported += world.drive.events.drain(..).filter(|e| matches!(e, GroupEvent::Error(_))).count();
    }
    assert_eq!((reported, more), (64, 64));
}

/// NVM 1.1, 3.1: media errors; no DNR, for the drive may do better.
#[test]
fn what_the_drive_fails_is_told_by_kind() {
    let mut world = World::new();
    for (fault, opcode, status, dnr) in [
        (Fault::Media, NvmOpcode::Read, Status::UNRECOVERED_READ_ERROR, false),
        (Fault::Media, NvmOpcode::Write, Status::WRITE_FAULT, false),
        (Fault::Media, NvmOpcode::Compare, Status::UNRECOVERED_READ_ERROR, false),
        (Fault::Media, NvmOpcode::Flush, Status::WRITE_FAULT, false),
        (Fault::NoSpace, NvmOpcode::WriteZeroes, Status::CAPACITY_EXCEEDED, false),
        (Fault::Memory, NvmOpcode::Write, Status::DATA_TRANSFER_ERROR, true),
        (Fault::Gone, NvmOpcode::Write, Status::INTERNAL_ERROR, false),
    ] {
        for mode in [Mode::AtOnce, Mode::Later] {
            (world.drive.fault, world.drive.mode) = (Some(fault), mode);
            let command = world.command(opcode, 1, 5, 1);
            let got = world.run(&command);
            assert_eq!((got.bare(), got.dnr()), (status, dnr), "{fault:?} {opcode:?}");
        }
    }
}

/// Base 2.1, 5.1.25.1.4: without the volatile write cache every write is on the media before its completion.
#[test]
fn a_write_is_fua_when_asked_or_when_the_cache_is_off() {
    use std::sync::atomic::Ordering::Relaxed;
    let mut world = World::new();
    let mut write = world.command(NvmOpcode::Write, 1, 0, 1);
    world.run(&write);
    write.cdw12 |= 1 << 30;
    world.run(&write);
    write.cdw12 &= !(1 << 30);
    world.region.admin.features_set[0].store(1 << 6, Relaxed);
    world.run(&write);
    let fua: Vec<Op> = world.drive.requests.iter().map(|(op, _)| *op).collect();
    assert_eq!(fua, [Op::Write { fua: false }, Op::Write { fua: true }, Op::Write { fua: true }]);
}

/// NVM 1.1, 3.3.1, 3.3.4 and 3.3.5: with FUA the blocks are committed to stable media, and then read from there.
#[test]
fn what_is_read_with_fua_is_committed_first_unless_nothing_can_be_uncommitted() {
    use std::sync::atomic::Ordering::Relaxed;
    for (mode, opcode) in [Mode::AtOnce, Mode::Later].into_iter().flat_map(|mode| {
        [NvmOpcode::Read, NvmOpcode::Compare, NvmOpcode::Verify].map(|opcode| (mode, opcode))
    }) {
        let mut world = World::new();
        world.drive.mode = mode;
        world.poke(DATA, &world.drive.disk[..512]);
        let mut command = world.command(opcode, 1, 0, 1);
        command.cdw12 |= 1 << 30;
        assert_eq!(world.run(&command), Status::SUCCESS);
        assert_eq!(world.memory(DATA, 512), world.drive.disk[..512]);
        let ops = |world: &World| world.drive.requests.iter().map(|(op, _)| *op).collect::<Vec<_>>();
        assert_eq!(ops(&world), [Op::Flush, Op::Read], "{opcode:?}");
        world.drive.fault = Some(Fault::Media);
        assert_eq!(world.run(&command).bare(), Status::WRITE_FAULT, "{opcode:?}: not committed, not read");
        world.drive.fault = None;
        world.drive.requests.clear();
        world.region.admin.features_set[0].store(1 << 6, Relaxed);
        assert_eq!(world.run(&command), Status::SUCCESS);
        assert_eq!(ops(&world), [Op::Read], "{opcode:?}: every write was committed");
    }
}

/// Base 2.1, 5.1.25.1.4; NVM 1.1, 3.3.2 and 3.3.8: FUA of the commands that write without the host's data.
#[test]
fn zeroes_and_copies_are_fua_when_asked_or_when_the_cache_is_off() {
    use std::sync::atomic::Ordering::Relaxed;
    for (asked, cache_off) in [(false, false), (true, false), (false, true)] {
        let mut world = World::new();
        if cache_off {
            world.region.admin.features_set[0].store(1 << 6, Relaxed);
        }
        world.poke(DATA, CopyRange0 { slba: 7, ..Default::default() }.as_bytes());
        for opcode in [NvmOpcode::WriteZeroes, NvmOpcode::Copy] {
            let mut command = world.command(opcode, 1, 64, 1);
            command.cdw12 |= u32::from(asked) << 30;
            assert_eq!(world.run(&command), Status::SUCCESS);
        }
        let fua = asked || cache_off;
        let ops: Vec<Op> = world.drive.requests.iter().map(|(op, _)| *op).collect();
        let zeroes = Op::WriteZeroes { deallocate: false, fua };
        assert_eq!(ops, [zeroes, Op::Read, Op::Write { fua }], "{asked} {cache_off}");
    }
}

/// Base 2.1, 7.2: Flush, to one namespace and to all.
#[test]
fn flush_reaches_the_drive_for_one_namespace_and_for_all() {
    let mut world = World::new();
    for nsid in [1, NSID_BROADCAST] {
        let flush = world.command(NvmOpcode::Flush, nsid, 0, 1);
        assert_eq!(world.run(&flush), Status::SUCCESS);
    }
    let flush = world.command(NvmOpcode::Flush, 0, 0, 1);
    assert_eq!(world.run(&flush).bare(), Status::INVALID_NAMESPACE_OR_FORMAT);
    assert_eq!(world.drive.requests.len(), 2);
}

/// NVM 1.1, 3.3.8 and 3.3.3.
#[test]
fn zeroed_and_deallocated_blocks_read_as_zeros() {
    let mut world = World::new();
    let zero = world.command(NvmOpcode::WriteZeroes, 1, 10, 3000);
    assert_eq!(world.run(&zero), Status::SUCCESS, "more than MDTS: no data moves");
    assert!(world.drive.disk[10 * 512..3010 * 512].iter().all(|byte| *byte == 0));
    let ranges = [
        DsmRange { cattr: 0, nlb: 4, slba: 3100 },
        DsmRange { cattr: 0, nlb: 0, slba: 0 },
        DsmRange { cattr: 0, nlb: 2, slba: 4094 },
    ];
    world.poke(DATA, ranges.as_bytes());
    let mut trim = world.command(NvmOpcode::DatasetManagement, 1, 0, 1);
    (trim.cdw10, trim.cdw11, trim.cdw12) = (2, 0, 0);
    world.drive.requests.clear();
    assert_eq!(world.run(&trim), Status::SUCCESS);
    assert!(world.drive.requests.is_empty(), "only the deallocate attribute asks for anything");
    trim.cdw11 = 4;
    assert_eq!(world.run(&trim), Status::SUCCESS);
    assert_eq!(world.drive.requests.len(), 2);
    assert!(world.drive.disk[3100 * 512..3104 * 512].iter().all(|byte| *byte == 0));
    world.poke(DATA, DsmRange { cattr: 0, nlb: 2, slba: 4095 }.as_bytes());
    trim.cdw10 = 0;
    assert_eq!(world.run(&trim).bare(), Status::LBA_OUT_OF_RANGE);
    let most = [DsmRange { cattr: 0, nlb: 1, slba: 4095 }; 256];
    world.poke(DATA, most.as_bytes());
    trim.cdw10 = 255;
    assert_eq!(world.run(&trim), Status::SUCCESS);
}

/// NVM 1.1, 3.3.1 and 3.3.5.
#[test]
fn compare_tells_equal_from_different_and_verify_reads() {
    for mode in [Mode::AtOnce, Mode::Later] {
        let mut world = World::new();
        world.drive.mode = mode;
        // 160 KiB: three steps through a buffer.
        let len = 320 * 512;
        world.poke(DATA, &world.drive.disk[..len]);
        let list: Vec<u64> = (1..40).map(|i| DATA + i * 4096).collect();
        world.poke(DATA + 0x10_0000, list.as_bytes());
        let mut compare = world.command(NvmOpcode::Compare, 1, 0, 320);
        compare.prp2 = DATA + 0x10_0000;
        assert_eq!(world.run(&compare), Status::SUCCESS);
        world.drive.disk[len - 1] ^= 1;
        assert_eq!(world.run(&compare).bare(), Status::COMPARE_FAILURE);
        let verify = world.command(NvmOpcode::Verify, 1, 0, 4096);
        assert_eq!(world.run(&verify), Status::SUCCESS);
    }
}

/// NVM 1.1, 3.3.2.
#[test]
fn copy_gathers_sources_and_refuses_what_exceeds_its_limits() {
    for mode in [Mode::AtOnce, Mode::Later] {
        let mut world = World::new();
        world.drive.mode = mode;
        let range = |slba, blocks: u16| CopyRange0 { slba, nlb_z: blocks - 1, ..Default::default() };
        world.poke(DATA, [range(100, 200), range(7, 1)].as_bytes());
        let mut copy = world.command(NvmOpcode::Copy, 1, 1000, 1);
        copy.cdw12 = 1;
        assert_eq!(world.run(&copy), Status::SUCCESS);
        let disk = &world.drive.disk;
        assert_eq!(disk[1000 * 512..1200 * 512], disk[100 * 512..300 * 512]);
        assert_eq!(disk[1200 * 512..1201 * 512], disk[7 * 512..8 * 512]);
        for (bad, dst, status) in [
            (range(0, 2049), 2000, Status::COMMAND_SIZE_LIMIT_EXCEEDED),
            (range(4090, 7), 0, Status::LBA_OUT_OF_RANGE),
            (range(0, 8), 4090, Status::LBA_OUT_OF_RANGE),
            (range(0, 8), 7, Status::OVERLAPPING_IO_RANGE),
        ] {
            world.poke(DATA, bad.as_bytes());
            copy.set_slba(dst);
            copy.cdw12 = 0;
            assert_eq!(world.run(&copy).bare(), status);
        }
        copy.cdw12 = 1 << 8;
        assert_eq!(world.run(&copy).bare(), Status::INVALID_FIELD, "format 1 is not supported");
        copy.cdw12 = 128;
        assert_eq!(world.run(&copy).bare(), Status::COMMAND_SIZE_LIMIT_EXCEEDED);
    }
}

/// NVM 1.1, 3.3.7.
#[test]
fn a_block_marked_uncorrectable_fails_reads_until_it_is_written() {
    let mut world = World::new();
    let mark = world.command(NvmOpcode::WriteUncorrectable, 1, 8, 2);
    assert_eq!(world.run(&mark), Status::SUCCESS);
    for opcode in [NvmOpcode::Read, NvmOpcode::Compare, NvmOpcode::Verify] {
        let command = world.command(opcode, 1, 9, 1);
        assert_eq!(world.run(&command).bare(), Status::UNRECOVERED_READ_ERROR, "{opcode:?}");
        let beside = world.command(opcode, 1, 10, 1);
        assert_ne!(world.run(&beside).bare(), Status::UNRECOVERED_READ_ERROR);
    }
    let write = world.command(NvmOpcode::Write, 1, 9, 1);
    assert_eq!(world.run(&write), Status::SUCCESS);
    let read = world.command(NvmOpcode::Read, 1, 9, 1);
    assert_eq!(world.run(&read), Status::SUCCESS);
    let read = world.command(NvmOpcode::Read, 1, 8, 1);
    assert_eq!(world.run(&read).bare(), Status::UNRECOVERED_READ_ERROR);
    let zero = world.command(NvmOpcode::WriteZeroes, 1, 0, 100);
    assert_eq!(world.run(&zero), Status::SUCCESS);
    assert!(world.table.get(1).expect("there").marks.is_empty());
}

/// NVM 1.1, 3.3.7: the blocks stay so until they are written, whatever the power does.
#[test]
fn marks_are_persisted_before_the_command_is_answered() {
    let mut world = World::new();
    let mark = world.command(NvmOpcode::WriteUncorrectable, 1, 8, 2);
    world.put(&mark);
    world.ring();
    world.turn();
    let [GroupEvent::WantPersist { ticket }] = world.drive.events[..] else {
        panic!("{:?}", world.drive.events)
    };
    assert!(world.reap().is_empty());
    world.tell(GroupCommand::Persisted { ticket, ok: false });
    assert_eq!(world.reap()[0].status.bare(), Status::INTERNAL_ERROR);
}

/// NVM 1.1, 3.3.7, and ours: a mark that one write cleared is on record until that is persisted. Another write of the blocks is not
/// answered before: after a crash the mark would lie over its data.
#[test]
fn no_write_is_answered_over_a_mark_that_a_crash_would_bring_back() {
    let mut world = World::new();
    let mark = world.command(NvmOpcode::WriteUncorrectable, 1, 8, 2);
    assert_eq!(world.run(&mark), Status::SUCCESS);
    let write = |world: &mut World, opcode| {
        let command = world.command(opcode, 1, 8, 2);
        world.put(&command);
        world.ring();
        world.turn();
        let [GroupEvent::WantPersist { ticket }] = world.drive.events.split_off(0)[..] else {
            panic!("{opcode:?} asks for a record")
        };
        assert!(world.reap().is_empty(), "{opcode:?} waits for it");
        ticket
    };
    let first = write(&mut world, NvmOpcode::Write);
    let second = write(&mut world, NvmOpcode::Write);
    let third = write(&mut world, NvmOpcode::WriteZeroes);
    let read = world.command(NvmOpcode::Read, 1, 9, 1);
    world.put(&read);
    world.ring();
    world.turn();
    assert_eq!(world.reap()[0].status.bare(), Status::SUCCESS, "reads see what was written");
    for (ticket, ok) in [(first, false), (second, true), (third, true)] {
        world.tell(GroupCommand::Persisted { ticket, ok });
        let expected = if ok { Status::SUCCESS } else { Status::INTERNAL_ERROR };
        assert_eq!(world.reap()[0].status.bare(), expected);
    }
    assert!(world.table.get(1).expect("there").marks.is_empty(), "and it is forgotten");
    let write = world.command(NvmOpcode::Write, 1, 8, 2);
    assert_eq!(world.run(&write), Status::SUCCESS);
}

/// Base 2.1, 3.4.2.
#[test]
fn compare_and_write_writes_exactly_when_the_compare_holds() {
    for mode in [Mode::AtOnce, Mode::Later] {
        let mut world = World::new();
        world.drive.mode = mode;
        world.poke(DATA, &world.drive.disk[512..1024]);
        world.poke(DATA + 0x4000, &[0xa5; 512]);
        for (status, write_status) in
            [(Status::SUCCESS, Status::SUCCESS), (Status::COMPARE_FAILURE, Status::ABORTED_FAILED_FUSED)]
        {
            let compare = fused(world.command(NvmOpcode::Compare, 1, 1, 1), 1);
            let mut write = fused(world.command(NvmOpcode::Write, 1, 1, 1), 2);
            write.prp1 = DATA + 0x4000;
            world.put(&compare);
            world.put(&write);
            world.ring();
            let done = world.settle();
            let answers: Vec<_> = done.iter().map(|c| (c.cid, c.status.bare())).collect();
            assert_eq!(answers, [(compare.cid(), status), (write.cid(), write_status)]);
            assert_eq!(world.drive.disk[512..1024], [0xa5; 512]);
        }
    }
}

/// Base 2.1, 3.4.2: halves that do not belong together.
#[test]
fn halves_that_are_no_pair_are_aborted_each_by_itself() {
    let mut world = World::new();
    let compare = fused(world.command(NvmOpcode::Compare, 1, 1, 1), 1);
    let read = world.command(NvmOpcode::Read, 1, 1, 1);
    let write = fused(world.command(NvmOpcode::Write, 1, 1, 1), 2);
    let elsewhere = fused(world.command(NvmOpcode::Write, 1, 2, 1), 2);
    for command in [compare, read, write, compare, elsewhere] {
        world.put(&command);
    }
    world.ring();
    let statuses: Vec<_> = world.settle().iter().map(|completion| completion.status.bare()).collect();
    let missing = Status::ABORTED_MISSING_FUSED;
    assert_eq!(statuses, [missing, Status::SUCCESS, missing, Status::INVALID_FIELD, Status::INVALID_FIELD]);
}

/// Base 2.1, 8.1.24.
#[test]
fn a_sanitize_lets_only_flush_through() {
    let mut world = World::new();
    let table = Arc::new(world.table.gated(SubsystemGate::Sanitizing));
    world.tell(GroupCommand::Namespaces { table, id: 1 });
    let read = world.command(NvmOpcode::Read, 1, 0, 1);
    let status = world.run(&read);
    assert_eq!((status.bare(), status.dnr()), (Status::SANITIZE_IN_PROGRESS, false));
    let flush = world.command(NvmOpcode::Flush, 1, 0, 1);
    assert_eq!(world.run(&flush), Status::SUCCESS);
}

/// Ours: hostile inputs, row 9.
#[test]
fn an_entry_changed_after_it_was_accepted_changes_nothing() {
    let mut world = World::new();
    world.drive.mode = Mode::Full;
    let read = world.command(NvmOpcode::Read, 1, 0, 1);
    world.put(&read);
    world.ring();
    world.turn();
    let mut other = read;
    other.nsid = 0;
    world.map.write_bytes(Iova(crate::world::SQ), other.as_bytes()).expect("mapped");
    world.drive.mode = Mode::AtOnce;
    world.turn();
    assert_eq!(world.reap()[0].status.bare(), Status::SUCCESS);
}

/// Base 2.1, 5.1.12.1.3; NVM 1.1, 1.4.2.
#[test]
fn the_counters_of_log_page_02h_count_what_succeeded() {
    use std::sync::atomic::Ordering::Relaxed;
    let mut world = World::new();
    for (opcode, slba, blocks) in [
        (NvmOpcode::Read, 0, 8),
        (NvmOpcode::Write, 0, 16),
        (NvmOpcode::Read, NS1_BLOCKS, 1),
        (NvmOpcode::Flush, 0, 1),
    ] {
        let command = world.command(opcode, 1, slba, blocks);
        world.run(&command);
    }
    let counters = &world.region.sqs[1];
    let values = [&counters.reads, &counters.read_sectors, &counters.writes, &counters.write_sectors];
    assert_eq!(values.map(|value| value.load(Relaxed)), [1, 8, 1, 16]);
}
