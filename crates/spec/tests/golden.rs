//! Golden encodings: bytes as real drivers and devices put them on the wire.

use spec::nvme::admin::{
    AsyncEventDw0, AsyncEventType, GetLogPageCdw10, GetLogPageCdw11, event_info, numd_z,
};
use spec::nvme::identify::IdentifyController;
use spec::nvme::log::{CommandEffects, Lid, SCOPE_NAMESPACE, SanitizeStatus};
use spec::nvme::nvm::{CopyCdw12, DsmCdw11, DsmRange, ReadWriteCdw12, WriteZeroesCdw12};
use spec::nvme::prp_sgl::{SglDescriptor, SglSubType, SglType};
use spec::nvme::queue::{CreateCqCdw11, CreateQueueCdw10, CreateSqCdw11};
use spec::nvme::registers::{self, Aqa, Cap, Cc, Csts, Vs};
use spec::nvme::{AdminOpcode, Cdw0, Command, Completion, NvmOpcode, Psdt, Status};
use spec::{pci, vfio_user};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// What Linux (6.x, `nvme_setup_rw`) sends to read 8 blocks at LBA 0x1_0000_0800 with CID 0x1007.
const LINUX_READ: [u8; 64] = [
    0x02, 0x00, 0x07, 0x10, 0x01, 0x00, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, // cdw0, nsid, cdw2, cdw3
    0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x30, 0x12, 0x05, 0x01, 0, 0, 0, // mptr, prp1
    0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x08, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, // prp2, cdw10, cdw11
    0x07, 0x00, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // cdw12..cdw15
];

#[test]
fn a_read_as_linux_sends_it_is_decoded_and_encoded() {
    let command = Command::read_from_bytes(&LINUX_READ).unwrap();
    assert_eq!(command.nvm_opcode(), NvmOpcode::Read);
    assert_eq!(command.cid(), 0x1007);
    assert_eq!(command.nsid, 1);
    assert_eq!(command.prp1, 0x1_0512_3000);
    assert_eq!(command.slba(), 0x1_0000_0800);
    let cdw12 = ReadWriteCdw12::from_bits(command.cdw12);
    assert_eq!((cdw12.nlb_z(), cdw12.fua(), cdw12.lr(), cdw12.prinfo()), (7, false, false, 0));

    let mut built = Command {
        cdw0: Cdw0::new().with_opcode(NvmOpcode::Read.0).with_cid(0x1007),
        nsid: 1,
        prp1: 0x1_0512_3000,
        cdw12: ReadWriteCdw12::new().with_nlb_z(7).into_bits(),
        ..Command::default()
    };
    built.set_slba(0x1_0000_0800);
    assert_eq!(built.as_bytes(), LINUX_READ);
}

#[test]
fn an_sgl_in_the_data_pointer_keeps_its_bytes() {
    let descriptor = SglDescriptor::new(SglType::LastSegment, 0x1122_3344_5566_7788, 0x20);
    assert_eq!(
        descriptor.as_bytes(),
        [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x20, 0, 0, 0, 0, 0, 0, 0x30]
    );
    let mut command = Command::default();
    command.cdw0.set_psdt(Psdt::SglMptrContiguous.0);
    command.set_sgl1(descriptor);
    assert_eq!(command.sgl1(), descriptor);
    assert_eq!(command.as_bytes()[1], 0x40);
    assert_eq!(command.as_bytes()[39], 0x30);
    assert_eq!(descriptor.sub_type(), SglSubType::Address);
}

#[test]
fn status_codes_have_the_numbers_tools_print() {
    assert_eq!(Status::SUCCESS.into_bits(), 0);
    assert_eq!(Status::INVALID_OPCODE.into_bits(), 0x0002);
    assert_eq!(Status::INVALID_OPCODE.dnr_set().into_bits(), 0x8002);
    assert_eq!(Status::INVALID_FIELD.code(), 0x002);
    assert_eq!(Status::LBA_OUT_OF_RANGE.code(), 0x080);
    assert_eq!(Status::INVALID_QUEUE_IDENTIFIER.code(), 0x101);
    assert_eq!(Status::COMPARE_FAILURE.code(), 0x285);
    assert_eq!(Status::UNRECOVERED_READ_ERROR.into_bits(), 0x0502);
    assert_eq!(Status::ABORTED_BY_HOST.code(), 0x371);
    let posted = Status::UNRECOVERED_READ_ERROR.with_phase(true).with_more(true).with_dnr(true).with_crd(3);
    assert_eq!(posted.into_bits(), 0xf503);
    assert_eq!(posted.bare(), Status::UNRECOVERED_READ_ERROR);
    assert!(!posted.is_success());
    assert!(Status::SUCCESS.with_phase(true).is_success());
}

#[test]
fn a_completion_puts_cid_status_and_phase_in_dword_three() {
    let status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true).with_phase(true);
    let completion = Completion { dw0: 0xdead_beef, dw1: 0, sqhd: 5, sqid: 3, cid: 0x1234, status };
    assert_eq!(completion.dwords(), [0xdead_beef, 0, 0x0003_0005, 0x8017_1234]);
    assert_eq!(Completion::from_dwords(completion.dwords()), completion);
    assert_eq!(completion.bits().to_le_bytes(), completion.as_bytes());
    assert_eq!(completion.bits() | Completion::phase_bit(true), completion.bits());
}

#[test]
fn unknown_opcodes_are_values() {
    assert_eq!(AdminOpcode(0xff).0, 0xff);
    assert_ne!(AdminOpcode(0xff), AdminOpcode::Identify);
    assert_eq!(Command { cdw0: Cdw0::from_bits(u32::MAX), ..Command::default() }.nvm_opcode().0, 0xff);
}

#[test]
fn registers_have_the_bits_of_the_specification() {
    // A common SSD: MQES 16383, CQR, weighted round robin, TO 30 s, NSSRS, NVM command set.
    let cap = Cap::from_bits(0x30_3c03_3fff);
    assert_eq!(
        (cap.mqes_z(), cap.cqr(), cap.ams_wrr(), cap.to(), cap.dstrd()),
        (0x3fff, true, true, 0x3c, 0)
    );
    assert_eq!((cap.nssrs(), cap.css(), cap.mpsmin(), cap.mpsmax()), (true, registers::CAP_CSS_NVM, 0, 0));
    assert_eq!(Cap::new().with_css(registers::CAP_CSS_NVM).into_bits(), 1 << 37);
    assert_eq!(Cap::new().with_crwms(true).into_bits(), 1 << 59);
    assert_eq!(Cap::new().with_nsses(true).into_bits(), 1 << 61);
    // What Linux writes to enable a controller: 4 KiB pages, 64 and 16 byte entries.
    let cc = Cc::from_bits(0x0046_0001);
    assert_eq!(
        (cc.en(), cc.css(), cc.mps(), cc.ams(), cc.shn(), cc.iosqes(), cc.iocqes()),
        (true, 0, 0, 0, 0, 6, 4)
    );
    assert_eq!(Csts::new().with_shst(2).with_rdy(true).into_bits(), 0x9);
    assert_eq!(Aqa::new().with_asqs_z(31).with_acqs_z(31).into_bits(), 0x001f_001f);
    assert_eq!(Vs::V2_1.into_bits(), 0x0002_0100);
    assert_eq!(Vs::V1_4.into_bits(), 0x0001_0400);
    assert_eq!(registers::NSSR_RESET.to_be_bytes(), *b"NVMe");
    assert_eq!(registers::NSSD_NORMAL.to_be_bytes(), *b"Nrml");
    assert_eq!(registers::NSSD_ABRUPT.to_be_bytes(), *b"Abrt");
    assert_eq!((registers::sq_tail_doorbell(0, 0), registers::cq_head_doorbell(0, 0)), (0x1000, 0x1004));
    assert_eq!((registers::sq_tail_doorbell(3, 0), registers::cq_head_doorbell(3, 2)), (0x1018, 0x1070));
}

#[test]
fn command_dwords_have_the_bits_of_the_specification() {
    assert_eq!(CreateQueueCdw10::new().with_qid(1).with_qsize_z(1023).into_bits(), 0x03ff_0001);
    assert_eq!(CreateCqCdw11::new().with_pc(true).with_ien(true).with_iv(1).into_bits(), 0x0001_0003);
    assert_eq!(CreateSqCdw11::new().with_pc(true).with_qprio(2).with_cqid(1).into_bits(), 0x0001_0005);
    assert_eq!(ReadWriteCdw12::new().with_fua(true).into_bits(), 1 << 30);
    assert_eq!(ReadWriteCdw12::new().with_prinfo(8).into_bits(), 1 << 29);
    assert_eq!(ReadWriteCdw12::new().with_dtype(1).into_bits(), 1 << 20);
    assert_eq!(WriteZeroesCdw12::new().with_deac(true).into_bits(), 1 << 25);
    assert_eq!(WriteZeroesCdw12::new().with_nsz(true).into_bits(), 1 << 23);
    assert_eq!(CopyCdw12::new().with_nr_z(1).with_desfmt(2).with_prinfow(8).into_bits(), 0x2000_0201);
    assert_eq!(DsmCdw11::new().with_ad(true).into_bits(), 4);
    assert_eq!(DsmRange { cattr: 0, nlb: 8, slba: 16 }.as_bytes()[4..12], [8, 0, 0, 0, 16, 0, 0, 0]);
    let all = GetLogPageCdw10::new().with_lid(Lid::SmartHealth.0).with_rae(true).with_numdl_z(127);
    assert_eq!(all.into_bits(), 0x007f_8002);
    assert_eq!(numd_z(GetLogPageCdw10::from_bits(u32::MAX), GetLogPageCdw11::from_bits(u32::MAX)), u32::MAX);
    let event = AsyncEventDw0::new()
        .with_event_type(AsyncEventType::Notice.0)
        .with_event_info(event_info::NOTICE_NAMESPACE_ATTRIBUTE_CHANGED)
        .with_lid(Lid::ChangedNamespaceList.0);
    assert_eq!(event.into_bits(), 0x0004_0002);
    // Format NVM as nvme-cli and SPDK report it: supported, changes content and namespaces, one per namespace.
    let effects = CommandEffects::new().with_csupp(true).with_lbcc(true).with_ncc(true).with_cse(1);
    assert_eq!(effects.into_bits(), 0x0001_0007);
    assert_eq!(effects.with_csp(SCOPE_NAMESPACE).into_bits(), 0x0011_0007);
    assert_eq!(SanitizeStatus::new().with_sos(1).with_gde(true).into_bits(), 0x0101);
}

#[test]
fn identify_controller_has_its_text_where_tools_look() {
    let mut identify = IdentifyController::new_zeroed();
    identify.sn = *b"GW000000000000000001";
    identify.fr = *b"0.1     ";
    identify.tnvmcap.set(1 << 40);
    let bytes = identify.as_bytes();
    assert_eq!(&bytes[4..24], b"GW000000000000000001");
    assert_eq!(&bytes[64..72], b"0.1     ");
    assert_eq!(bytes[280..288], (1_u64 << 40).to_le_bytes());
}

#[test]
fn vfio_user_messages_have_the_bytes_qemu_sends() {
    let header = vfio_user::Header {
        id: 2,
        command: vfio_user::CommandId::DmaMap.0,
        size: 48,
        flags: vfio_user::HeaderFlags::NO_REPLY,
        errno: 0,
    };
    assert_eq!(header.as_bytes(), [2, 0, 2, 0, 48, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    let flags = vfio_user::HeaderFlags::REPLY | vfio_user::HeaderFlags::ERROR;
    assert_eq!(flags.bits(), 0x21);
    assert_eq!(flags.message_type(), vfio_user::MessageType::Reply);
    // Unknown bits survive.
    let strange = vfio_user::HeaderFlags::read_from_bytes(&[0x8f, 0, 0, 0xff]).unwrap();
    assert_eq!((strange.bits(), strange.message_type().0), (0xff00_008f, 0xf));
    let trigger = vfio_user::IrqSetFlags::DATA_EVENTFD | vfio_user::IrqSetFlags::ACTION_TRIGGER;
    assert_eq!(trigger.bits(), 0x24);
    let get = vfio_user::DeviceFeatureFlags(1 << 16 | 2);
    assert_eq!(get.feature(), vfio_user::FeatureIndex::MigDeviceState);
    assert!(get.contains(vfio_user::DeviceFeatureFlags::GET));
    let state = vfio_user::MigDeviceState { device_state: vfio_user::MigState::StopCopy.0, data_fd: -1 };
    assert_eq!(state.as_bytes(), [3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn pci_structures_have_the_bits_of_the_specification() {
    let mut header = pci::Header::new_zeroed();
    header.class_code = pci::header::CLASS_CODE_NVME;
    header.status.set_capabilities(true);
    assert_eq!(header.as_bytes()[6], 0x10);
    assert_eq!(header.as_bytes()[9..12], [0x02, 0x08, 0x01]);
    assert_eq!(pci::Command::new().with_bus_master(true).with_interrupt_disable(true).into_bits(), 0x404);
    assert_eq!(pci::MsixControl::new().with_table_size_z(128).with_enable(true).into_bits(), 0x8080);
    let pba = pci::MsixOffset::at(4, 0x1000);
    assert_eq!((pba.into_bits(), pba.bir(), pba.offset()), (0x1004, 4, 0x1000));
    assert_eq!(pci::capability::DeviceCapabilities::new().with_flr(true).into_bits(), 1 << 28);
    assert_eq!(pci::capability::DeviceControl::new().with_initiate_flr(true).into_bits(), 1 << 15);
    assert_eq!(pci::Pmcsr::new().with_power_state(3).with_no_soft_reset(true).into_bits(), 0xb);
}
