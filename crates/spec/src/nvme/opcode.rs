//! Opcodes (Base 2.1, 5, figures 89 and 90; NVM 1.1, 3.3).

use open_enum::open_enum;

/// Admin command opcodes (Base 2.1, 3.1.3.4 and 5). A guest may send any byte: an unknown one is a value.
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AdminOpcode {
    /// Delete I/O Submission Queue.
    DeleteIoSubmissionQueue = 0x00,
    /// Create I/O Submission Queue.
    CreateIoSubmissionQueue = 0x01,
    /// Get Log Page.
    GetLogPage = 0x02,
    /// Delete I/O Completion Queue.
    DeleteIoCompletionQueue = 0x04,
    /// Create I/O Completion Queue.
    CreateIoCompletionQueue = 0x05,
    /// Identify.
    Identify = 0x06,
    /// Abort.
    Abort = 0x08,
    /// Set Features.
    SetFeatures = 0x09,
    /// Get Features.
    GetFeatures = 0x0a,
    /// Asynchronous Event Request.
    AsyncEventRequest = 0x0c,
    /// Namespace Management.
    NamespaceManagement = 0x0d,
    /// Firmware Commit.
    FirmwareCommit = 0x10,
    /// Firmware Image Download.
    FirmwareImageDownload = 0x11,
    /// Device Self-test.
    DeviceSelfTest = 0x14,
    /// Namespace Attachment.
    NamespaceAttachment = 0x15,
    /// Keep Alive.
    KeepAlive = 0x18,
    /// Directive Send.
    DirectiveSend = 0x19,
    /// Directive Receive.
    DirectiveReceive = 0x1a,
    /// Virtualization Management.
    VirtualizationManagement = 0x1c,
    /// NVMe-MI Send.
    NvmeMiSend = 0x1d,
    /// NVMe-MI Receive.
    NvmeMiReceive = 0x1e,
    /// Capacity Management.
    CapacityManagement = 0x20,
    /// Discovery Information Management.
    DiscoveryInformationManagement = 0x21,
    /// Fabric Zoning Receive.
    FabricZoningReceive = 0x22,
    /// Lockdown.
    Lockdown = 0x24,
    /// Fabric Zoning Lookup.
    FabricZoningLookup = 0x25,
    /// Clear Exported NVM Resource Configuration.
    ClearExportedNvmResourceConfiguration = 0x28,
    /// Fabric Zoning Send.
    FabricZoningSend = 0x29,
    /// Create Exported NVM Subsystem.
    CreateExportedNvmSubsystem = 0x2a,
    /// Manage Exported NVM Subsystem.
    ManageExportedNvmSubsystem = 0x2d,
    /// Manage Exported Namespace.
    ManageExportedNamespace = 0x31,
    /// Manage Exported Port.
    ManageExportedPort = 0x35,
    /// Send Discovery Log Page.
    SendDiscoveryLogPage = 0x39,
    /// Track Send.
    TrackSend = 0x3d,
    /// Track Receive.
    TrackReceive = 0x3e,
    /// Migration Send.
    MigrationSend = 0x41,
    /// Migration Receive.
    MigrationReceive = 0x42,
    /// Controller Data Queue.
    ControllerDataQueue = 0x45,
    /// Doorbell Buffer Config.
    DoorbellBufferConfig = 0x7c,
    /// Fabrics commands.
    Fabrics = 0x7f,
    /// Format NVM.
    FormatNvm = 0x80,
    /// Security Send.
    SecuritySend = 0x81,
    /// Security Receive.
    SecurityReceive = 0x82,
    /// Sanitize.
    Sanitize = 0x84,
    /// Get LBA Status (NVM 1.1, 4.2.1).
    GetLbaStatus = 0x86,
}

/// I/O command opcodes of the NVM command set (NVM 1.1, 3.3; Base 2.1, 7).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NvmOpcode {
    /// Flush.
    Flush = 0x00,
    /// Write.
    Write = 0x01,
    /// Read.
    Read = 0x02,
    /// Write Uncorrectable.
    WriteUncorrectable = 0x04,
    /// Compare.
    Compare = 0x05,
    /// Write Zeroes.
    WriteZeroes = 0x08,
    /// Dataset Management.
    DatasetManagement = 0x09,
    /// Verify.
    Verify = 0x0c,
    /// Reservation Register.
    ReservationRegister = 0x0d,
    /// Reservation Report.
    ReservationReport = 0x0e,
    /// Reservation Acquire.
    ReservationAcquire = 0x11,
    /// I/O Management Receive.
    IoManagementReceive = 0x12,
    /// Reservation Release.
    ReservationRelease = 0x15,
    /// Cancel.
    Cancel = 0x18,
    /// Copy.
    Copy = 0x19,
    /// I/O Management Send.
    IoManagementSend = 0x1d,
}
