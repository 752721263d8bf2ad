//! A command that was carried out and whose answer never was comes again to the next engine, whose session is what the last deposit
//! says (docs/decisions/0008-redelivery.md): the same reply, and the device is asked for the same.

use std::sync::Arc;

use crate::harness::*;
use frontend::vfio_user::{ClientFd, Limits, Message, Negotiated, Session, frame};

/// What was answered, as a deposit would say it.
#[derive(Clone, Default)]
struct Deposited {
    negotiated: Option<Negotiated>,
    maps: Vec<(u64, u64)>,
}

/// One engine: everything it knows of the client is in the deposit, and it dies with the rest.
struct Engine {
    session: Session,
    device: Fake,
}

impl Engine {
    fn new(deposited: &Deposited) -> Self {
        let session =
            Session::resumed(&Limits::default(), deposited.negotiated, deposited.maps.iter().copied());
        Self { session, device: Fake::new() }
    }

    /// The reply's bytes, and what the device was asked.
    fn handle(&mut self, command: u16, payload: &[u8], fds: usize) -> (Vec<u8>, Vec<String>) {
        let bytes = message(7, command, 0, payload);
        let header = frame::Header::parse(bytes[..16].try_into().expect("a header")).expect("sound");
        let fds = (0..fds).map(|id| ClientFd { id: u32::try_from(id).expect("few"), fd: event() }).collect();
        let message = Message { seq: 0, header, payload: payload.to_vec(), fds, surplus_fds: false };
        let outcome = self.session.handle(&message.header, &message.payload, message.fds, &mut self.device);
        let calls = std::mem::take(&mut *self.device.calls.lock().expect("not poisoned"));
        (outcome.reply.expect("a reply is wanted").bytes, calls)
    }
}

const RAM: u64 = 1 << 20;

/// Every command that has an effect, and how many descriptors it carries.
fn commands() -> Vec<(u16, Vec<u8>, usize)> {
    let multi = |writes: &[(u64, u32, [u8; 4])]| {
        let mut payload = u64s(&[writes.len() as u64]);
        for (offset, region, data) in writes {
            payload.extend(range(*offset, *region, 4));
            payload.extend_from_slice(data);
            payload.extend_from_slice(&[0; 4]);
        }
        payload
    };
    vec![
        (DMA_MAP, dma_map(3, 0, 8 * RAM, RAM), 1),
        (DMA_MAP, dma_map(1, 0, 16 * RAM, RAM), 0),
        // Of the two maps that the deposit has.
        (DMA_UNMAP, dma_unmap(0, 0, RAM), 0),
        (DMA_UNMAP, dma_unmap(2, 0, 0), 0),
        (SET_IRQS, u32s(&[20, 0x24, 0, 0, 1]), 1),
        (SET_IRQS, u32s(&[20, 0x24, 2, 0, 3]), 3),
        (SET_IRQS, u32s(&[20, 0x24, 2, 4, 2]), 0),
        (SET_IRQS, u32s(&[20, 0x21, 2, 0, 0]), 0),
        (SET_IRQS, u32s(&[20, 0x09, 0, 0, 1]), 0),
        (SET_IRQS, u32s(&[20, 0x11, 0, 0, 1]), 0),
        (REGION_READ, range(0x40, 0, 8), 0),
        (REGION_WRITE, [range(0x40, 0, 4), vec![1, 2, 3, 4]].concat(), 0),
        (REGION_WRITE, [range(4, 7, 2), vec![6, 0]].concat(), 0),
        (RESET, vec![], 0),
        (WRITE_MULTI, multi(&[(0x40, 0, [1; 4]), (4, 7, [2; 4]), (0x40, 0, [3; 4])]), 0),
        (GET_INFO, u32s(&[16, 0, 0, 0]), 0),
        (REGION_INFO, u32s(&[64, 0, 0, 0, 0, 0, 0, 0]), 0),
        (REGION_IO_FDS, u32s(&[16, 0, 0, 0]), 0),
        (IRQ_INFO, u32s(&[16, 0, 2, 0]), 0),
        // Refused alike.
        (DMA_MAP, dma_map(3, 0, 0, RAM), 1),
        (DMA_UNMAP, dma_unmap(0, 4 * RAM, RAM), 0),
        (FEATURE, u32s(&[16, 1, 0, 0]), 0),
    ]
}

fn agreed() -> Deposited {
    let mut engine = Engine::new(&Deposited::default());
    engine.handle(VERSION, &version(QEMU_JSON), 0);
    Deposited { negotiated: engine.session.negotiated().copied(), maps: vec![(0, RAM), (2 * RAM, RAM)] }
}

#[test]
fn a_command_that_comes_again_to_the_next_engine_gets_the_same_reply_and_asks_the_same() {
    let deposited = agreed();
    for (command, payload, fds) in commands() {
        let mut whole = Engine::new(&deposited);
        let expected = whole.handle(command, &payload, fds);
        // The first dies when the command is done and the answer is not out.
        Engine::new(&deposited).handle(command, &payload, fds);
        let mut next = Engine::new(&deposited);
        assert_eq!(next.handle(command, &payload, fds), expected, "command {command} {payload:x?}");
        // What comes after it finds the same state.
        for (command, payload, fds) in commands() {
            let after = whole.handle(command, &payload, fds);
            assert_eq!(next.handle(command, &payload, fds), after, "then {command} {payload:x?}");
        }
    }
}

#[test]
fn a_version_that_comes_again_is_agreed_on_again_and_an_answered_one_is_not() {
    let mut engine = Engine::new(&Deposited::default());
    let first = engine.handle(VERSION, &version(QEMU_JSON), 0);
    let again = Engine::new(&Deposited::default()).handle(VERSION, &version(QEMU_JSON), 0);
    assert_eq!(first, again);
    let (refused, _) = Engine::new(&agreed()).handle(VERSION, &version(QEMU_JSON), 0);
    assert_eq!(refused[12..16], EINVAL.to_le_bytes(), "one version a session, over all engines");
}

/// Without this a second delivery would take a doorbell back: 1, 2 and, when the guest's queue is at 2 already, 1 again.
#[test]
fn of_several_values_for_a_doorbell_in_one_message_only_the_last_is_stored() {
    struct Doorbells(Fake);
    impl frontend::vfio_user::Device for Doorbells {
        fn info(&self) -> &frontend::vfio_user::DeviceInfo {
            self.0.info()
        }
        fn region_read(
            &mut self,
            region: u32,
            offset: u64,
            data: &mut [u8],
        ) -> Result<(), rustix::io::Errno> {
            self.0.region_read(region, offset, data)
        }
        fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), rustix::io::Errno> {
            self.0.region_write(region, offset, data)
        }
        fn dma_map(&mut self, map: frontend::vfio_user::DmaMap) -> Result<(), rustix::io::Errno> {
            self.0.dma_map(map)
        }
        fn dma_unmap(&mut self, unmap: frontend::vfio_user::DmaUnmap) -> Result<(), rustix::io::Errno> {
            self.0.dma_unmap(unmap)
        }
        fn set_irqs(&mut self, set: frontend::vfio_user::SetIrqs) -> Result<(), rustix::io::Errno> {
            self.0.set_irqs(set)
        }
        fn reset(&mut self) -> Result<(), rustix::io::Errno> {
            self.0.reset()
        }
        fn last_write_counts(&self, region: u32, offset: u64) -> bool {
            region == 0 && offset >= 0x1000
        }
    }
    let deposited = agreed();
    let mut session = Session::resumed(&Limits::default(), deposited.negotiated, []);
    let mut device = Doorbells(Fake::new());
    let mut payload = u64s(&[4]);
    for (offset, value) in [(0x1008_u64, 1_u32), (0x1010, 5), (0x1008, 2), (0x40, 3)] {
        payload.extend([range(offset, 0, 4), u32s(&[value, 0])].concat());
    }
    let bytes = message(7, WRITE_MULTI, 0, &payload);
    let header = frame::Header::parse(bytes[..16].try_into().expect("a header")).expect("sound");
    for _ in 0..2 {
        assert!(session.handle(&header, &payload, vec![], &mut device).refused.is_none());
        let calls = std::mem::take(&mut *Arc::clone(&device.0.calls).lock().expect("not poisoned"));
        assert_eq!(calls, ["write 0 0x1010+4", "write 0 0x1008+4", "write 0 0x40+4"]);
        let mut doorbell = [0; 4];
        frontend::vfio_user::Device::region_read(&mut device, 0, 0x1008, &mut doorbell).expect("read");
        assert_eq!(doorbell, [2, 0, 0, 0]);
        device.0.calls.lock().expect("not poisoned").clear();
    }
}
