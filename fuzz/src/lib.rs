//! What the fuzz targets share: the guest's memory, the edge values, and the fakes around the device model.

pub mod admin;
pub mod edge;
pub mod group;
pub mod guest;
pub mod pool;
pub mod region;
pub mod rig;
