//! Version negotiation (vfio-user.rst, `VFIO_USER_VERSION`).

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use spec::vfio_user::{VERSION_MAJOR, VERSION_MINOR, Version};
use zerocopy::IntoBytes;

use super::frame::{BITMAP_BYTES_MAX, DATA_BYTES_MAX, FDS_MAX, PAGE_BYTES};

/// Every page size from 4 KiB up.
const PAGE_SIZES: u64 = !0xFFF;

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// The client takes a descriptor with a reply.
    pub client_takes_fds: bool,
    /// The most data of one DMA_READ or DMA_WRITE.
    pub data_bytes_max: usize,
    /// REGION_WRITE_MULTI may come.
    pub write_multiple: bool,
}

#[derive(Serialize, Deserialize, Default)]
struct VersionData {
    #[serde(default)]
    capabilities: Capabilities,
}

/// Unknown capabilities (`twin_socket`) are skipped without being kept.
#[derive(Serialize, Deserialize, Default)]
struct Capabilities {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_msg_fds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_data_xfer_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_dma_maps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pgsizes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    write_multiple: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    migration: Option<Value>,
}

/// Answers a proposal: what is agreed, and the reply's payload.
///
/// The reply names a capability only when the client did (it must be a subset), and says of each what *we* can take.
/// `logs`: whether the device logs its DMA; `None`: it does not migrate.
/// It always ends in JSON text and a NUL: SPDK's driver, which sends no JSON, skips it, and other clients need it.
pub(crate) fn negotiate(
    (major, minor): (u16, u16),
    data: &[u8],
    dma_maps_max: usize,
    logs: Option<bool>,
) -> Result<(Negotiated, Vec<u8>), Errno> {
    if major != VERSION_MAJOR {
        return Err(Errno::PROTONOSUPPORT);
    }
    let theirs = if data.is_empty() {
        Capabilities::default()
    } else {
        serde_json::from_slice::<VersionData>(data).map_err(|_| Errno::INVAL)?.capabilities
    };
    let data_bytes_max = theirs.max_data_xfer_size.map_or(DATA_BYTES_MAX, |bytes| {
        usize::try_from(bytes).map_or(DATA_BYTES_MAX, |bytes| bytes.min(DATA_BYTES_MAX))
    });
    let pgsizes = theirs.pgsizes.map(|sizes| sizes & PAGE_SIZES);
    if data_bytes_max == 0 || pgsizes == Some(0) {
        return Err(Errno::INVAL);
    }
    let negotiated = Negotiated {
        client_takes_fds: theirs.max_msg_fds != Some(0),
        data_bytes_max,
        write_multiple: theirs.write_multiple == Some(true),
    };
    let ours = Capabilities {
        max_msg_fds: theirs.max_msg_fds.map(|_| FDS_MAX as u64),
        max_data_xfer_size: theirs.max_data_xfer_size.map(|_| DATA_BYTES_MAX as u64),
        max_dma_maps: theirs.max_dma_maps.map(|maps| maps.min(dma_maps_max as u64)),
        pgsizes,
        write_multiple: theirs.write_multiple,
        // Both fields are of logging. Whatever the client says there, it knows of migration.
        migration: theirs.migration.and(logs).map(|logs| match logs {
            true => json!({ "pgsize": PAGE_BYTES, "max_bitmap_size": BITMAP_BYTES_MAX }),
            false => json!({}),
        }),
    };
    let mut payload = Vec::with_capacity(256);
    payload.extend_from_slice(Version { major, minor: minor.min(VERSION_MINOR) }.as_bytes());
    serde_json::to_writer(&mut payload, &VersionData { capabilities: ours }).map_err(|_| Errno::NOMEM)?;
    payload.push(0);
    Ok((negotiated, payload))
}
