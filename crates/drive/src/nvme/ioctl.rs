//! Admin commands through the kernel: `NVME_IOCTL_ADMIN64_CMD` on `/dev/nvmeX`, `/dev/nvmeXnY` or `/dev/ngXnY`.
#![expect(unsafe_code, reason = "an ioctl has no safe form in std")]
// UNSAFETY: one ioctl with a local structure of the kernel's layout that names a buffer which outlives the call, and one without any.

use super::{Admin, AdminError, Data, Request};
use spec::nvme::identify::IDENTIFY_BYTES;
use spec::nvme::{AdminOpcode, Status};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `struct nvme_passthru_cmd64` (Linux, include/uapi/linux/nvme_ioctl.h).
#[repr(C)]
#[derive(Default)]
struct PassthruCommand64 {
    opcode: u8,
    flags: u8,
    reserved1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10_15: [u32; 6],
    timeout_ms: u32,
    reserved2: u32,
    result: u64,
}

const _: () = assert!(size_of::<PassthruCommand64>() == 80);

/// `_IOWR('N', 0x47, struct nvme_passthru_cmd64)`.
const NVME_IOCTL_ADMIN64_CMD: libc::c_ulong = 0xc050_4e47;
/// `_IO('N', 0x46)`.
const NVME_IOCTL_RESCAN: libc::c_ulong = 0x4e46;

/// A drive of this host.
#[derive(Debug)]
pub struct Ioctl {
    file: File,
}

impl Ioctl {
    /// Opens a controller's or a namespace's node. Reading is enough for the kernel to let root ask anything; it asks for
    /// `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> io::Result<Ioctl> {
        Ok(Ioctl { file: OpenOptions::new().read(true).open(path)? })
    }

    /// Has the kernel look which namespaces the controller has now. Only a controller's node (`/dev/nvmeX`) takes this.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn rescan(&self) -> io::Result<()> {
        // SAFETY: this ioctl takes no argument.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), NVME_IOCTL_RESCAN) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Admin for Ioctl {
    fn submit(&mut self, request: &Request, data: Data<'_>) -> Result<u32, AdminError> {
        let opcode = request.opcode;
        let refused =
            |_| AdminError::Transport { opcode, error: io::Error::from(io::ErrorKind::InvalidInput) };
        // The kernel takes the direction from bit 0 of the opcode.
        let is_write = opcode.0 & 1 == 1;
        let (address, len) = match data {
            Data::None => (0, 0),
            Data::In(bytes) if !is_write => (bytes.as_mut_ptr().expose_provenance(), bytes.len()),
            Data::Out(bytes) if is_write => (bytes.as_ptr().expose_provenance(), bytes.len()),
            Data::In(_) | Data::Out(_) => return Err(refused(())),
        };
        // The drive always sends a whole structure.
        if opcode == AdminOpcode::Identify && len != IDENTIFY_BYTES {
            return Err(refused(()));
        }
        let data_len = u32::try_from(len).map_err(|_| refused(()))?;
        let mut command = PassthruCommand64 {
            opcode: opcode.0,
            nsid: request.nsid,
            addr: address as u64,
            data_len,
            cdw10_15: request.cdw10_15,
            timeout_ms: request.timeout_ms,
            ..PassthruCommand64::default()
        };
        // SAFETY: the structure is the kernel's and lives through the call. The buffer it names is borrowed by `data` for as
        // long, mutably if the drive writes to it (checked above), and has `data_len` bytes.
        let answer = unsafe { libc::ioctl(self.file.as_raw_fd(), NVME_IOCTL_ADMIN64_CMD, &raw mut command) };
        match u16::try_from(answer) {
            Ok(0) => Ok(u32::try_from(command.result & 0xffff_ffff).unwrap_or(0)),
            // The kernel gives the status field without the phase tag.
            Ok(status) => Err(AdminError::Status { opcode, status: Status::from_bits(status << 1) }),
            Err(_) => Err(AdminError::Transport { opcode, error: io::Error::last_os_error() }),
        }
    }
}
