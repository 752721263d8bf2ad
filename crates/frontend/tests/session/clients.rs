//! What real clients send (traced), in their order.

use std::os::fd::AsFd;

use crate::harness::*;
use frontend::vfio_user::EndReason;

#[test]
fn the_order_qemu_11_sends_is_served() {
    let mut running = Running::start();
    let client = &mut running.client;

    let version = client.negotiate();
    assert_eq!(&version.payload[..4], &[0, 0, 1, 0]);
    let json = std::str::from_utf8(&version.payload[4..]).expect("text").strip_suffix('\0').expect("a NUL");
    let caps = &serde_json::from_str::<serde_json::Value>(json).expect("JSON")["capabilities"];
    assert_eq!(caps["max_msg_fds"], 16);
    assert_eq!(caps["max_data_xfer_size"], 1_048_576);
    assert_eq!(caps["max_dma_maps"], 4096);
    assert_eq!(caps["pgsizes"], 4096);
    assert_eq!(caps["write_multiple"], true);
    assert!(caps.get("migration").is_none() && caps.get("twin_socket").is_none());

    let ram = memfd(1 << 20);
    assert!(client.call_with(DMA_MAP, &dma_map(3, 0, 0, 1 << 20), &[ram.as_fd()]).is_ok());
    assert!(client.call(DMA_MAP, &dma_map(1, 0, 0xFFFC_0000, 0x4_0000)).is_ok());

    let info = client.call(GET_INFO, &u32s(&[16, 0, 0, 0]));
    assert_eq!(info.payload, u32s(&[16, 3, 9, 5]));

    for index in [0, 1, 2, 3, 4, 5, 7] {
        let short = client.call(REGION_INFO, &u32s(&[32, 0, index, 0, 0, 0, 0, 0]));
        assert_eq!(short.payload.len(), 32);
        assert_eq!(short.u32_at(4) & 8, 0, "a short reply has no capability flag");
        assert_eq!(short.u32_at(12), 0);
        let argsz = short.u32_at(0);
        if argsz == 32 {
            assert!(short.fds.is_empty());
            continue;
        }
        let full = client.call(REGION_INFO, &u32s(&[argsz, 0, index, 0, 0, 0, 0, 0]));
        assert_eq!(full.u32_at(0), argsz);
        assert_eq!(u32::try_from(full.payload.len()), Ok(argsz));
        assert_eq!((full.u32_at(4), full.u32_at(12), full.fds.len()), (15, 32, 1));
        // Sparse mmap, version 1, last; one area.
        assert_eq!(&full.payload[32..], [u32s(&[0x1_0001, 0, 1, 0]), u64s(&[0x1000, 0x1000])].concat());
    }

    assert_eq!(client.call(IRQ_INFO, &u32s(&[16, 0, 3, 0])).payload, u32s(&[16, 1, 3, 1]));
    assert_eq!(client.call(REGION_READ, &range(0, 7, 4096)).payload.len(), 16 + 4096);
    assert!(client.call(REGION_WRITE, &[range(0x30, 7, 4), u32s(&[!0])].concat()).is_ok());
    assert_eq!(client.call(IRQ_INFO, &u32s(&[16, 0, 2, 0])).payload, u32s(&[16, 9, 2, 129]));
    let events = [event(), event()];
    for (index, event) in [0, 3].into_iter().zip(&events) {
        let set = u32s(&[20, 0x24, index, 0, 1]);
        assert!(client.call_with(SET_IRQS, &set, &[event.as_fd()]).is_ok());
    }
    assert!(client.call(RESET, &[]).is_ok());
    // Chunks of sixteen descriptors, then some without.
    let vectors: Vec<_> = (0..16).map(|_| event()).collect();
    assert!(client.call_with(SET_IRQS, &u32s(&[20, 0x24, 2, 0, 16]), &borrow(&vectors)).is_ok());
    assert!(client.call(SET_IRQS, &u32s(&[20, 0x24, 2, 16, 8])).is_ok());
    assert!(client.call(SET_IRQS, &u32s(&[20, 0x21, 2, 0, 0])).is_ok());
    assert_eq!(client.call(DMA_UNMAP, &dma_unmap(0, 0, 1 << 20)).payload, dma_unmap(0, 0, 1 << 20));
    assert_eq!(client.call(DMA_UNMAP, &dma_unmap(2, 0, 0)).payload, dma_unmap(2, 0, 0));

    assert_eq!(
        running.take_calls(),
        [
            "map 0x0+0x100000 rw Some(0)",
            "map 0xfffc0000+0x40000 r None",
            "read 7 0x0+4096",
            "write 7 0x30+4",
            "irqs 0 0+1 Trigger 1 of 1 fds",
            "irqs 3 0+1 Trigger 1 of 1 fds",
            "reset",
            "irqs 2 0+16 Trigger 16 of 16 fds",
            "irqs 2 16+8 Trigger 0 of 8 fds",
            "irqs 2 0+0 Trigger none",
            "unmap 0x0+0x100000",
            "unmap all",
        ]
    );
    let end = running.leave();
    assert_eq!((end.reason, end.refused), (EndReason::Disconnected, 0));
}

#[test]
fn the_order_spdk_sends_is_served() {
    let running = Running::start();
    let client = &running.client;
    // Always message id 0. The header, then the payload in one read.
    let call = |command, payload: &[u8], fds: &[_]| {
        client.send(&message(0, command, 0, payload), fds);
        let answer = client.receive().expect("a reply");
        assert!(answer.is_ok() && answer.id == 0 && answer.payload.len() <= 4096);
        answer
    };
    let version = call(VERSION, &[0, 0, 1, 0], &[]);
    assert_eq!(version.payload, b"\0\0\x01\0{\"capabilities\":{}}\0");
    let regions = call(GET_INFO, &u32s(&[16, 0, 0, 0]), &[]).u32_at(8);
    for index in 0..regions {
        let mut payload = u32s(&[4064, 0, index, 0, 0, 0, 0, 0]);
        payload.resize(4064, 0);
        let info = call(REGION_INFO, &payload, &[]);
        if index == 0 {
            assert_eq!((info.payload.len(), info.u32_at(4), info.fds.len()), (64, 15, 1));
        } else {
            assert_eq!((info.payload.len(), info.fds.len()), (32, 0));
        }
    }
    let page = memfd(2 << 20);
    call(DMA_MAP, &dma_map(3, 0, 0x2000_0020_0000, 2 << 20), &[page.as_fd()]);
    assert_eq!(call(REGION_READ, &range(4, 7, 2), &[]).payload.len(), 18);
    call(REGION_WRITE, &[range(4, 7, 2), vec![6, 0]].concat(), &[]);
    assert_eq!(call(REGION_READ, &range(0, 0, 8), &[]).payload.len(), 24);
    call(REGION_WRITE, &[range(0x14, 0, 4), vec![1, 0, 0, 0]].concat(), &[]);
    call(DMA_UNMAP, &dma_unmap(0, 0x2000_0020_0000, 2 << 20), &[page.as_fd()]);
    assert_eq!(running.leave().refused, 0);
}

#[test]
fn a_reply_arrives_in_one_piece() {
    let running = Running::negotiated();
    running.client.send(&message(1, REGION_READ, 0, &range(0, 7, 4080)), &[]);
    let mut buffer = vec![0; 8192];
    let count = rustix::net::recv(&running.client.stream, &mut buffer[..], rustix::net::RecvFlags::empty());
    assert_eq!(count.map(|(_, count)| count), Ok(16 + 16 + 4080));
    running.leave();
}

#[test]
fn the_client_of_the_vfio_user_crate_is_served() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("socket");
    let server = crate::listener::Server::start(&path);
    let mut client = vfio_user::Client::new(&path).expect("version and regions");
    let region = client.region(0).expect("region 0");
    assert_eq!((region.size, region.flags, region.sparse_areas.len()), (BAR0_BYTES, 15, 1));
    assert!(region.file_offset.is_some());
    client.region_write(0, 0x40, &[1, 2, 3, 4]).expect("written");
    let mut data = [0; 4];
    client.region_read(0, 0x40, &mut data).expect("read");
    assert_eq!(data, [1, 2, 3, 4]);
    let ram = memfd(1 << 20);
    let raw = std::os::fd::AsRawFd::as_raw_fd(&ram);
    client.dma_map(0, 0x10_0000, 1 << 20, raw).expect("mapped");
    client.dma_unmap(0x10_0000, 1 << 20).expect("unmapped");
    assert_eq!(client.get_irq_info(2).expect("irq info").count, 129);
    let event = event();
    client.set_irqs(2, 0x24, 0, 1, &[std::os::fd::AsRawFd::as_raw_fd(&event)]).expect("set");
    client.reset().expect("reset");
    client.shutdown().expect("shut down");
    let ends = server.stop();
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0].refused, 0);
}
