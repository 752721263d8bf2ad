//! Status codes (Base 2.1, 4.2.3, figures 101 to 105; NVM 1.1, 3.1).

use bitfield_struct::bitfield;
use open_enum::open_enum;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The status field of a completion (Base 2.1, 4.2.3, figure 97), with the phase tag in bit 0.
///
/// The constants below have every other bit (phase, CRD, M, DNR) clear: add DNR with [`Status::dnr_set`].
#[bitfield(u16)]
#[derive(PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Status {
    /// Phase tag (P). Not part of the status proper.
    pub phase: bool,
    /// Status code (SC), meaningful within its type.
    pub sc: u8,
    /// Status code type (SCT): see [`StatusCodeType`].
    #[bits(3)]
    pub sct: u8,
    /// Command retry delay (CRD): which of Identify Controller's CRDTs to wait. 0 = none.
    #[bits(2)]
    pub crd: u8,
    /// More information is in the error log (M).
    pub more: bool,
    /// Do not retry: the same command would fail again (DNR).
    pub dnr: bool,
}

impl Status {
    /// The status with this type and code, every other bit clear.
    const fn code_of(sct: u8, sc: u8) -> Self {
        Self::new().with_sct(sct).with_sc(sc)
    }

    /// Type and code alone: SCT in bits 10:8, SC in bits 7:0. What tools print.
    pub const fn code(self) -> u16 {
        (self.into_bits() >> 1) & 0x7ff
    }

    /// This status without phase, CRD, M and DNR: comparable with the constants.
    pub const fn bare(self) -> Self {
        Self::code_of(self.sct(), self.sc())
    }

    /// Whether type and code say success, whatever the other bits.
    pub const fn is_success(self) -> bool {
        self.code() == 0
    }

    /// This status with Do Not Retry set.
    pub const fn dnr_set(self) -> Self {
        self.with_dnr(true)
    }
}

/// Status code type (Base 2.1, 4.2.3, figure 100).
#[open_enum]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StatusCodeType {
    /// Generic command status.
    Generic = 0,
    /// Command specific status.
    CommandSpecific = 1,
    /// Media and data integrity errors.
    Media = 2,
    /// Path related status.
    Path = 3,
    /// Vendor specific.
    VendorSpecific = 7,
}

/// Generic command status (Base 2.1, 4.2.3.1, figure 102), SCT 0.
impl Status {
    /// The command completed without error
    pub const SUCCESS: Self = Self::code_of(0, 0x00);
    /// Invalid Command Opcode
    pub const INVALID_OPCODE: Self = Self::code_of(0, 0x01);
    /// Invalid Field in Command
    pub const INVALID_FIELD: Self = Self::code_of(0, 0x02);
    /// Command ID Conflict
    pub const COMMAND_ID_CONFLICT: Self = Self::code_of(0, 0x03);
    /// Data Transfer Error
    pub const DATA_TRANSFER_ERROR: Self = Self::code_of(0, 0x04);
    /// Commands Aborted due to Power Loss Notification
    pub const ABORTED_POWER_LOSS: Self = Self::code_of(0, 0x05);
    /// Internal Error
    pub const INTERNAL_ERROR: Self = Self::code_of(0, 0x06);
    /// Command Abort Requested
    pub const ABORT_REQUESTED: Self = Self::code_of(0, 0x07);
    /// Command Aborted due to SQ Deletion
    pub const ABORTED_SQ_DELETION: Self = Self::code_of(0, 0x08);
    /// Command Aborted due to Failed Fused Command
    pub const ABORTED_FAILED_FUSED: Self = Self::code_of(0, 0x09);
    /// Command Aborted due to Missing Fused Command
    pub const ABORTED_MISSING_FUSED: Self = Self::code_of(0, 0x0a);
    /// Invalid Namespace or Format
    pub const INVALID_NAMESPACE_OR_FORMAT: Self = Self::code_of(0, 0x0b);
    /// Command Sequence Error
    pub const COMMAND_SEQUENCE_ERROR: Self = Self::code_of(0, 0x0c);
    /// Invalid SGL Segment Descriptor
    pub const INVALID_SGL_SEGMENT_DESCRIPTOR: Self = Self::code_of(0, 0x0d);
    /// Invalid Number of SGL Descriptors
    pub const INVALID_SGL_DESCRIPTOR_COUNT: Self = Self::code_of(0, 0x0e);
    /// Data SGL Length Invalid
    pub const DATA_SGL_LENGTH_INVALID: Self = Self::code_of(0, 0x0f);
    /// Metadata SGL Length Invalid
    pub const METADATA_SGL_LENGTH_INVALID: Self = Self::code_of(0, 0x10);
    /// SGL Descriptor Type Invalid
    pub const SGL_DESCRIPTOR_TYPE_INVALID: Self = Self::code_of(0, 0x11);
    /// Invalid Use of Controller Memory Buffer
    pub const INVALID_USE_OF_CMB: Self = Self::code_of(0, 0x12);
    /// PRP Offset Invalid
    pub const PRP_OFFSET_INVALID: Self = Self::code_of(0, 0x13);
    /// Atomic Write Unit Exceeded
    pub const ATOMIC_WRITE_UNIT_EXCEEDED: Self = Self::code_of(0, 0x14);
    /// Operation Denied
    pub const OPERATION_DENIED: Self = Self::code_of(0, 0x15);
    /// SGL Offset Invalid
    pub const SGL_OFFSET_INVALID: Self = Self::code_of(0, 0x16);
    /// Host Identifier Inconsistent Format
    pub const HOST_IDENTIFIER_INCONSISTENT_FORMAT: Self = Self::code_of(0, 0x18);
    /// Keep Alive Timer Expired
    pub const KEEP_ALIVE_TIMER_EXPIRED: Self = Self::code_of(0, 0x19);
    /// Keep Alive Timeout Invalid
    pub const KEEP_ALIVE_TIMEOUT_INVALID: Self = Self::code_of(0, 0x1a);
    /// Command Aborted due to Preempt and Abort
    pub const ABORTED_PREEMPT_AND_ABORT: Self = Self::code_of(0, 0x1b);
    /// Sanitize Failed
    pub const SANITIZE_FAILED: Self = Self::code_of(0, 0x1c);
    /// Sanitize In Progress
    pub const SANITIZE_IN_PROGRESS: Self = Self::code_of(0, 0x1d);
    /// SGL Data Block Granularity Invalid
    pub const SGL_DATA_BLOCK_GRANULARITY_INVALID: Self = Self::code_of(0, 0x1e);
    /// Command Not Supported for Queue in CMB
    pub const COMMAND_NOT_SUPPORTED_FOR_QUEUE_IN_CMB: Self = Self::code_of(0, 0x1f);
    /// Namespace is Write Protected
    pub const NAMESPACE_IS_WRITE_PROTECTED: Self = Self::code_of(0, 0x20);
    /// Command Interrupted
    pub const COMMAND_INTERRUPTED: Self = Self::code_of(0, 0x21);
    /// Transient Transport Error
    pub const TRANSIENT_TRANSPORT_ERROR: Self = Self::code_of(0, 0x22);
    /// Command Prohibited by Command and Feature Lockdown
    pub const COMMAND_PROHIBITED_BY_LOCKDOWN: Self = Self::code_of(0, 0x23);
    /// Admin Command Media Not Ready
    pub const ADMIN_COMMAND_MEDIA_NOT_READY: Self = Self::code_of(0, 0x24);
    /// Invalid Key Tag
    pub const INVALID_KEY_TAG: Self = Self::code_of(0, 0x25);
    /// Host Dispersed Namespace Support Not Enabled
    pub const HOST_DISPERSED_NAMESPACE_SUPPORT_NOT_ENABLED: Self = Self::code_of(0, 0x26);
    /// Host Identifier Not Initialized
    pub const HOST_IDENTIFIER_NOT_INITIALIZED: Self = Self::code_of(0, 0x27);
    /// Incorrect Key
    pub const INCORRECT_KEY: Self = Self::code_of(0, 0x28);
    /// FDP Disabled
    pub const FDP_DISABLED: Self = Self::code_of(0, 0x29);
    /// Invalid Placement Handle List
    pub const INVALID_PLACEMENT_HANDLE_LIST: Self = Self::code_of(0, 0x2a);
    /// LBA Out of Range (NVM command set)
    pub const LBA_OUT_OF_RANGE: Self = Self::code_of(0, 0x80);
    /// Capacity Exceeded (NVM command set)
    pub const CAPACITY_EXCEEDED: Self = Self::code_of(0, 0x81);
    /// Namespace Not Ready (NVM command set)
    pub const NAMESPACE_NOT_READY: Self = Self::code_of(0, 0x82);
    /// Reservation Conflict
    pub const RESERVATION_CONFLICT: Self = Self::code_of(0, 0x83);
    /// Format In Progress
    pub const FORMAT_IN_PROGRESS: Self = Self::code_of(0, 0x84);
    /// Invalid Value Size (key-value command set)
    pub const INVALID_VALUE_SIZE: Self = Self::code_of(0, 0x85);
    /// Invalid Key Size (key-value command set)
    pub const INVALID_KEY_SIZE: Self = Self::code_of(0, 0x86);
    /// KV Key Does Not Exist (key-value command set)
    pub const KV_KEY_DOES_NOT_EXIST: Self = Self::code_of(0, 0x87);
    /// Unrecovered Error (key-value command set)
    pub const UNRECOVERED_ERROR: Self = Self::code_of(0, 0x88);
    /// Key Exists (key-value command set)
    pub const KEY_EXISTS: Self = Self::code_of(0, 0x89);
}

/// Command specific status (Base 2.1, 4.2.3.2, figure 103), SCT 1.
impl Status {
    /// Completion Queue Invalid
    pub const COMPLETION_QUEUE_INVALID: Self = Self::code_of(1, 0x00);
    /// Invalid Queue Identifier
    pub const INVALID_QUEUE_IDENTIFIER: Self = Self::code_of(1, 0x01);
    /// Invalid Queue Size
    pub const INVALID_QUEUE_SIZE: Self = Self::code_of(1, 0x02);
    /// Abort Command Limit Exceeded
    pub const ABORT_COMMAND_LIMIT_EXCEEDED: Self = Self::code_of(1, 0x03);
    /// Asynchronous Event Request Limit Exceeded
    pub const ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED: Self = Self::code_of(1, 0x05);
    /// Invalid Firmware Slot
    pub const INVALID_FIRMWARE_SLOT: Self = Self::code_of(1, 0x06);
    /// Invalid Firmware Image
    pub const INVALID_FIRMWARE_IMAGE: Self = Self::code_of(1, 0x07);
    /// Invalid Interrupt Vector
    pub const INVALID_INTERRUPT_VECTOR: Self = Self::code_of(1, 0x08);
    /// Invalid Log Page
    pub const INVALID_LOG_PAGE: Self = Self::code_of(1, 0x09);
    /// Invalid Format
    pub const INVALID_FORMAT: Self = Self::code_of(1, 0x0a);
    /// Firmware Activation Requires Conventional Reset
    pub const FIRMWARE_NEEDS_CONVENTIONAL_RESET: Self = Self::code_of(1, 0x0b);
    /// Invalid Queue Deletion
    pub const INVALID_QUEUE_DELETION: Self = Self::code_of(1, 0x0c);
    /// Feature Identifier Not Saveable
    pub const FEATURE_NOT_SAVEABLE: Self = Self::code_of(1, 0x0d);
    /// Feature Not Changeable
    pub const FEATURE_NOT_CHANGEABLE: Self = Self::code_of(1, 0x0e);
    /// Feature Not Namespace Specific
    pub const FEATURE_NOT_NAMESPACE_SPECIFIC: Self = Self::code_of(1, 0x0f);
    /// Firmware Activation Requires NVM Subsystem Reset
    pub const FIRMWARE_NEEDS_SUBSYSTEM_RESET: Self = Self::code_of(1, 0x10);
    /// Firmware Activation Requires Controller Level Reset
    pub const FIRMWARE_NEEDS_CONTROLLER_RESET: Self = Self::code_of(1, 0x11);
    /// Firmware Activation Requires Maximum Time Violation
    pub const FIRMWARE_NEEDS_MAX_TIME_VIOLATION: Self = Self::code_of(1, 0x12);
    /// Firmware Activation Prohibited
    pub const FIRMWARE_ACTIVATION_PROHIBITED: Self = Self::code_of(1, 0x13);
    /// Overlapping Range
    pub const OVERLAPPING_RANGE: Self = Self::code_of(1, 0x14);
    /// Namespace Insufficient Capacity
    pub const NAMESPACE_INSUFFICIENT_CAPACITY: Self = Self::code_of(1, 0x15);
    /// Namespace Identifier Unavailable
    pub const NAMESPACE_IDENTIFIER_UNAVAILABLE: Self = Self::code_of(1, 0x16);
    /// Namespace Already Attached
    pub const NAMESPACE_ALREADY_ATTACHED: Self = Self::code_of(1, 0x18);
    /// Namespace Is Private
    pub const NAMESPACE_IS_PRIVATE: Self = Self::code_of(1, 0x19);
    /// Namespace Not Attached
    pub const NAMESPACE_NOT_ATTACHED: Self = Self::code_of(1, 0x1a);
    /// Thin Provisioning Not Supported
    pub const THIN_PROVISIONING_NOT_SUPPORTED: Self = Self::code_of(1, 0x1b);
    /// Controller List Invalid
    pub const CONTROLLER_LIST_INVALID: Self = Self::code_of(1, 0x1c);
    /// Device Self-test In Progress
    pub const SELF_TEST_IN_PROGRESS: Self = Self::code_of(1, 0x1d);
    /// Boot Partition Write Prohibited
    pub const BOOT_PARTITION_WRITE_PROHIBITED: Self = Self::code_of(1, 0x1e);
    /// Invalid Controller Identifier
    pub const INVALID_CONTROLLER_IDENTIFIER: Self = Self::code_of(1, 0x1f);
    /// Invalid Secondary Controller State
    pub const INVALID_SECONDARY_CONTROLLER_STATE: Self = Self::code_of(1, 0x20);
    /// Invalid Number of Controller Resources
    pub const INVALID_NUMBER_OF_CONTROLLER_RESOURCES: Self = Self::code_of(1, 0x21);
    /// Invalid Resource Identifier
    pub const INVALID_RESOURCE_IDENTIFIER: Self = Self::code_of(1, 0x22);
    /// Sanitize Prohibited While Persistent Memory Region is Enabled
    pub const SANITIZE_PROHIBITED_WHILE_PMR_ENABLED: Self = Self::code_of(1, 0x23);
    /// ANA Group Identifier Invalid
    pub const ANA_GROUP_IDENTIFIER_INVALID: Self = Self::code_of(1, 0x24);
    /// ANA Attach Failed
    pub const ANA_ATTACH_FAILED: Self = Self::code_of(1, 0x25);
    /// Insufficient Capacity
    pub const INSUFFICIENT_CAPACITY: Self = Self::code_of(1, 0x26);
    /// Namespace Attachment Limit Exceeded
    pub const NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED: Self = Self::code_of(1, 0x27);
    /// Prohibition of Command Execution Not Supported
    pub const PROHIBITION_NOT_SUPPORTED: Self = Self::code_of(1, 0x28);
    /// I/O Command Set Not Supported
    pub const IO_COMMAND_SET_NOT_SUPPORTED: Self = Self::code_of(1, 0x29);
    /// I/O Command Set Not Enabled
    pub const IO_COMMAND_SET_NOT_ENABLED: Self = Self::code_of(1, 0x2a);
    /// I/O Command Set Combination Rejected
    pub const IO_COMMAND_SET_COMBINATION_REJECTED: Self = Self::code_of(1, 0x2b);
    /// Invalid I/O Command Set
    pub const INVALID_IO_COMMAND_SET: Self = Self::code_of(1, 0x2c);
    /// Identifier Unavailable
    pub const IDENTIFIER_UNAVAILABLE: Self = Self::code_of(1, 0x2d);
    /// Namespace Is Dispersed
    pub const NAMESPACE_IS_DISPERSED: Self = Self::code_of(1, 0x2e);
    /// Invalid Discovery Information
    pub const INVALID_DISCOVERY_INFORMATION: Self = Self::code_of(1, 0x2f);
    /// Zoning Data Structure Locked
    pub const ZONING_DATA_STRUCTURE_LOCKED: Self = Self::code_of(1, 0x30);
    /// Zoning Data Structure Not Found
    pub const ZONING_DATA_STRUCTURE_NOT_FOUND: Self = Self::code_of(1, 0x31);
    /// Insufficient Discovery Resources
    pub const INSUFFICIENT_DISCOVERY_RESOURCES: Self = Self::code_of(1, 0x32);
    /// Requested Function Disabled
    pub const REQUESTED_FUNCTION_DISABLED: Self = Self::code_of(1, 0x33);
    /// ZoneGroup Originator Invalid
    pub const ZONEGROUP_ORIGINATOR_INVALID: Self = Self::code_of(1, 0x34);
    /// Invalid Host
    pub const INVALID_HOST: Self = Self::code_of(1, 0x35);
    /// Invalid NVM Subsystem
    pub const INVALID_NVM_SUBSYSTEM: Self = Self::code_of(1, 0x36);
    /// Invalid Controller Data Queue
    pub const INVALID_CONTROLLER_DATA_QUEUE: Self = Self::code_of(1, 0x37);
    /// Not Enough Resources
    pub const NOT_ENOUGH_RESOURCES: Self = Self::code_of(1, 0x38);
    /// Controller Suspended
    pub const CONTROLLER_SUSPENDED: Self = Self::code_of(1, 0x39);
    /// Controller Not Suspended
    pub const CONTROLLER_NOT_SUSPENDED: Self = Self::code_of(1, 0x3a);
    /// Controller Data Queue Full
    pub const CONTROLLER_DATA_QUEUE_FULL: Self = Self::code_of(1, 0x3b);
}

/// Command specific status of the NVM command set (NVM 1.1, 3.1), SCT 1.
impl Status {
    /// Conflicting Attributes
    pub const CONFLICTING_ATTRIBUTES: Self = Self::code_of(1, 0x80);
    /// Invalid Protection Information
    pub const INVALID_PROTECTION_INFORMATION: Self = Self::code_of(1, 0x81);
    /// Attempted Write to Read Only Range
    pub const ATTEMPTED_WRITE_TO_READ_ONLY_RANGE: Self = Self::code_of(1, 0x82);
    /// Command Size Limit Exceeded
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Self = Self::code_of(1, 0x83);
    /// Invalid Command ID (Cancel)
    pub const INVALID_COMMAND_ID: Self = Self::code_of(1, 0x84);
    /// Incompatible Namespace or Format
    pub const INCOMPATIBLE_NAMESPACE_OR_FORMAT: Self = Self::code_of(1, 0x85);
    /// Fast Copy Not Possible
    pub const FAST_COPY_NOT_POSSIBLE: Self = Self::code_of(1, 0x86);
    /// Overlapping I/O Range
    pub const OVERLAPPING_IO_RANGE: Self = Self::code_of(1, 0x87);
    /// Namespace Not Reachable
    pub const NAMESPACE_NOT_REACHABLE: Self = Self::code_of(1, 0x88);
    /// Insufficient Resources
    pub const INSUFFICIENT_RESOURCES: Self = Self::code_of(1, 0x89);
}

/// Media and data integrity errors (Base 2.1, 4.2.3.3; NVM 1.1, 3.1), SCT 2.
impl Status {
    /// Write Fault
    pub const WRITE_FAULT: Self = Self::code_of(2, 0x80);
    /// Unrecovered Read Error
    pub const UNRECOVERED_READ_ERROR: Self = Self::code_of(2, 0x81);
    /// End-to-end Guard Check Error
    pub const GUARD_CHECK_ERROR: Self = Self::code_of(2, 0x82);
    /// End-to-end Application Tag Check Error
    pub const APPLICATION_TAG_CHECK_ERROR: Self = Self::code_of(2, 0x83);
    /// End-to-end Reference Tag Check Error
    pub const REFERENCE_TAG_CHECK_ERROR: Self = Self::code_of(2, 0x84);
    /// Compare Failure
    pub const COMPARE_FAILURE: Self = Self::code_of(2, 0x85);
    /// Access Denied
    pub const ACCESS_DENIED: Self = Self::code_of(2, 0x86);
    /// Deallocated or Unwritten Logical Block
    pub const DEALLOCATED_OR_UNWRITTEN_BLOCK: Self = Self::code_of(2, 0x87);
    /// End-to-End Storage Tag Check Error
    pub const STORAGE_TAG_CHECK_ERROR: Self = Self::code_of(2, 0x88);
}

/// Path related status (Base 2.1, 4.2.3.4), SCT 3.
impl Status {
    /// Internal Path Error
    pub const INTERNAL_PATH_ERROR: Self = Self::code_of(3, 0x00);
    /// Asymmetric Access Persistent Loss
    pub const ANA_PERSISTENT_LOSS: Self = Self::code_of(3, 0x01);
    /// Asymmetric Access Inaccessible
    pub const ANA_INACCESSIBLE: Self = Self::code_of(3, 0x02);
    /// Asymmetric Access Transition
    pub const ANA_TRANSITION: Self = Self::code_of(3, 0x03);
    /// Controller Pathing Error
    pub const CONTROLLER_PATHING_ERROR: Self = Self::code_of(3, 0x60);
    /// Host Pathing Error
    pub const HOST_PATHING_ERROR: Self = Self::code_of(3, 0x70);
    /// Command Aborted By Host
    pub const ABORTED_BY_HOST: Self = Self::code_of(3, 0x71);
}
