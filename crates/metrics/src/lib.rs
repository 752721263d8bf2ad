//! What is measured of each ssd: the page that the engine's reactors write, and how others read and tell it.
//!
//! ```text
//!  reactor 0 --stores--> lane 0 \                                     / godwit top
//!  reactor 1 --stores--> lane 1  > one memfd an ssd, kept by keeper --  godwit metrics (Prometheus text)
//!  private   --stores--> lane 64/                                     \ whoever has the descriptor
//! ```
//!
//! Everything only grows, and outlives engines: the keeper gives the page to the next one, which goes on counting in it. A word has
//! one writer at a time, and readers look whenever they like: each word is right, and two words may be a few I/Os apart.
//!
//! Not here: counts by namespace or queue (all of an ssd's are one), the whole latency in one figure (its parts do not add up as
//! percentiles), what a guest's admin commands cost, and time series: that is what Prometheus is for.
#![forbid(unsafe_code)]

mod bucket;
mod page;
mod prometheus;
mod snapshot;

pub use bucket::{BUCKETS, bucket_of, floor_ns};
pub use page::{Class, Facts, LANES, Lane, MAGIC, Op, PRIVATE_LANE, Page, Part};
pub use prometheus::{Engine, Observed, prometheus};
pub use snapshot::{Counts, Histogram, PageError, Snapshot};
