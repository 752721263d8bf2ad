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

/// Answers the next DMA command as libvfio-user's client does: the address and count as they came, and the data of a read.
fn answer_dma(client: &Client, command: u16, count: u64, memory: &mut [u8]) {
    let asked = client.receive().expect("a command");
    assert_eq!((asked.command, asked.flags, asked.u64_at(8)), (command, 0, count));
    let at = usize::try_from(asked.u64_at(0)).expect("small");
    let end = at + usize::try_from(count).expect("small");
    let mut payload = asked.payload[..16].to_vec();
    if command == DMA_READ {
        assert_eq!(asked.payload.len(), 16);
        payload.extend_from_slice(&memory[at..end]);
    } else {
        memory[at..end].copy_from_slice(&asked.payload[16..]);
    }
    client.send(&message(asked.id, command, 1, &payload), &[]);
}

/// The order and layout of libvfio-user's `samples/client.c`: its version data, ids, a region that does not exist, infos asked for
/// in the size of the structure first, a page a DMA map, INTx alone, DMA in pieces of 1 KiB. Its dirty-page command (14) left the
/// protocol: it is refused, and the session goes on.
#[test]
fn the_order_libvfio_users_client_sends_is_served() {
    let running = Running::start();
    let client = &running.client;
    let ask = |id, command, payload: &[u8], fds: &[_]| {
        client.send(&message(id, command, 0, payload), fds);
        let answer = client.receive().expect("a reply");
        assert_eq!((answer.id, answer.command), (id, command));
        answer
    };
    let call = |id, command, payload: &[u8], fds: &[_]| {
        let answer = ask(id, command, payload, fds);
        assert!(answer.is_ok(), "command {command}: {}", answer.errno);
        answer
    };
    let json = r#"{"capabilities":{"max_msg_fds":32,"max_data_xfer_size":1024,"migration":{"pgsize":4096}}}"#;
    let agreed = call(0xda55, VERSION, &version(json), &[]);
    let (head, text) = agreed.payload.split_at(4);
    assert_eq!((head, text.last()), (&[0, 0, 1, 0][..], Some(&0)), "the JSON ends in a NUL");
    let caps: serde_json::Value = serde_json::from_slice(&text[..text.len() - 1]).expect("JSON");
    let fds_max = caps["capabilities"]["max_msg_fds"].as_u64().expect("a number of descriptors");
    assert!(fds_max > 0 && caps["capabilities"].get("migration").is_none());

    let mut id = 0xf00f;
    let mut access = |command, region, offset, data: &[u8], count| {
        id -= 1;
        ask(id, command, &[range(offset, region, count), data.to_vec()].concat(), &[])
    };
    access(REGION_READ, 0xdead_beef, 0, &[], 4).expect_error(EINVAL);

    let info = call(0xb10c, GET_INFO, &u32s(&[16, 0, 0, 0]), &[]);
    assert_eq!((info.payload.len(), info.u32_at(0)), (16, 16));
    for index in 0..info.u32_at(8) {
        let short = call(0xabcd, REGION_INFO, &u32s(&[32, 0, index, 0, 0, 0, 0, 0]), &[]);
        assert_eq!(short.payload.len(), 32);
        let argsz = short.u32_at(0);
        if argsz > 32 {
            let full = [u32s(&[argsz, 0, index, 0]), vec![0; argsz as usize - 16]].concat();
            let full = call(0xabcd, REGION_INFO, &full, &[]);
            assert_eq!((full.u32_at(0), full.payload.len(), full.fds.len()), (argsz, argsz as usize, 1));
            // It walks the capabilities by `next` from the end of the structure, and knows sparse areas (1).
            assert_eq!((full.u32_at(12), full.u32_at(32) & 0xffff, full.u32_at(36)), (32, 1, 0));
        }
    }
    assert_eq!(access(REGION_READ, 7, 0, &[], 64).payload.len(), 16 + 64);
    call(1, RESET, &[], &[]);

    let page = memfd(64 * 4096);
    let maps = 2 * fds_max;
    for at in 0..maps {
        let one = dma_map(3, at * 4096, at * 4096, 4096);
        call(0x1234 + u16::try_from(at).expect("few"), DMA_MAP, &one, &[page.as_fd()]);
    }
    for index in 0..5 {
        assert_eq!(call(0x1bad, IRQ_INFO, &u32s(&[16, 0, index, 0]), &[]).payload.len(), 16);
    }
    let intx = event();
    call(0x1bae, SET_IRQS, &u32s(&[20, 0x24, 0, 0, 1]), &[intx.as_fd()]);
    ask(0, 14, &u32s(&[8, 1]), &[]).expect_error(EOPNOTSUPP);

    let time = 1_700_000_000_u64.to_le_bytes();
    let written = access(REGION_WRITE, 0, 0, &time, 8);
    assert_eq!((written.is_ok(), written.payload.len(), written.u32_at(12)), (true, 16, 8));
    assert_eq!(access(REGION_READ, 0, 0, &[], 8).payload[16..], time);

    let remote = running.remote.clone();
    let device = std::thread::spawn(move || {
        remote.write(0x3000, &[0x5a; 4096]).expect("written");
        let mut back = [0; 4096];
        remote.read(0x3000, &mut back).expect("read");
        assert_eq!(back, [0x5a; 4096]);
    });
    let mut memory = vec![0; 0x5000];
    (0..4).for_each(|_| answer_dma(client, DMA_WRITE, 1024, &mut memory));
    (0..4).for_each(|_| answer_dma(client, DMA_READ, 1024, &mut memory));
    device.join().expect("no panic");

    for at in 0..fds_max {
        let one = dma_unmap(0, at * 4096, 4096);
        assert_eq!(call(7, DMA_UNMAP, &one, &[]).payload, one);
    }
    // Of newer releases: migration by VFIO_DEVICE_FEATURE, which is not offered.
    ask(9, FEATURE, &u32s(&[16, 0x1_0001, 0, 0]), &[]).expect_error(ENOTTY);
    assert_eq!(call(8, DMA_UNMAP, &dma_unmap(2, 0, 0), &[]).payload, dma_unmap(2, 0, 0));
    assert_eq!(running.leave().refused, 3);
}

/// QEMU 10.1 and 10.2: the commands of QEMU 11, and DMA with a count of 32 bits and its padding at the end. SeaBIOS unmaps and maps
/// the RAM again; the mappable part of BAR0 comes back as memory without a descriptor.
#[test]
fn the_order_qemu_10_sends_is_served() {
    let mut running = Running::negotiated();
    let client = &mut running.client;
    let ram = memfd(1 << 20);
    assert!(client.call_with(DMA_MAP, &dma_map(3, 0, 0, 1 << 20), &[ram.as_fd()]).is_ok());
    assert!(client.call(DMA_MAP, &dma_map(1, 0, 0xfffc_0000, 0x4_0000)).is_ok());
    assert_eq!(client.call(GET_INFO, &u32s(&[16, 0, 0, 0])).payload.len(), 16);
    assert_eq!(client.call(REGION_READ, &range(0, 7, 4096)).payload.len(), 16 + 4096);
    let intx = event();
    assert!(client.call_with(SET_IRQS, &u32s(&[20, 0x24, 0, 0, 1]), &[intx.as_fd()]).is_ok());
    assert!(client.call(RESET, &[]).is_ok());
    for _ in 0..3 {
        assert!(client.call(DMA_UNMAP, &dma_unmap(0, 0, 1 << 20)).is_ok());
        assert!(client.call_with(DMA_MAP, &dma_map(3, 0, 0, 0xc_0000), &[ram.as_fd()]).is_ok());
        assert!(client.call_with(DMA_MAP, &dma_map(3, 0xc_0000, 0xc_0000, 0x4_0000), &[ram.as_fd()]).is_ok());
        assert!(client.call(DMA_UNMAP, &dma_unmap(0, 0, 0xc_0000)).is_ok());
        assert!(client.call(DMA_UNMAP, &dma_unmap(0, 0xc_0000, 0x4_0000)).is_ok());
        assert!(client.call_with(DMA_MAP, &dma_map(3, 0, 0, 1 << 20), &[ram.as_fd()]).is_ok());
    }
    assert!(client.call(DMA_MAP, &dma_map(3, 0, 0xfe00_1000, 0x1000)).is_ok());
    let remote = running.remote.clone();
    let device = std::thread::spawn(move || {
        let mut command = [0; 64];
        remote.read(0xfffc_0000, &mut command).expect("read");
        assert_eq!((command[0], command[63]), (6, 9));
        remote.write(0xfffc_0000, &[7; 16]).expect("written");
    });
    let (client, mut memory) = (&running.client, vec![0; 64]);
    (memory[0], memory[63]) = (6, 9);
    for command in [DMA_READ, DMA_WRITE] {
        let asked = client.receive().expect("a command");
        assert_eq!((asked.command, asked.u64_at(0)), (command, 0xfffc_0000));
        let count = asked.u32_at(8) as usize;
        let mut payload = asked.payload[..12].to_vec();
        if command == DMA_READ {
            payload.extend_from_slice(&memory[..count]);
            payload.extend_from_slice(&[0; 4]);
        } else {
            memory[..count].copy_from_slice(&asked.payload[12..12 + count]);
            payload.extend_from_slice(&[0; 4]);
        }
        client.send(&message(asked.id, command, 1, &payload), &[]);
    }
    device.join().expect("no panic");
    assert_eq!(memory[..16], [7; 16]);
    assert_eq!(running.client.call(REGION_READ, &range(0x1000, 4, 8)).payload.len(), 24, "pending bits");
    let end = running.leave();
    assert_eq!((end.reason, end.refused), (EndReason::Disconnected, 0));
}
