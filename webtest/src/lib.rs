//! The agent's page in a real Chromium, driven by WebDriver.
//!
//! ```text
//!  test --WebDriver--> chromedriver --> Chromium --TCP--> relay::Relay --unix socket--> agent::Agent --> godwitd
//!                                                            |
//!                                                            +-- answers of the test's own, where it wants to lie
//! ```
//!
//! [`browser::Browser`] installs (once) and starts the browser; [`agent::Agent`] is the control plane beside a daemon of
//! `vmtest`; [`load::Load`] keeps an ssd busy; [`pair::two_hosts`] are two daemons that one moves between.
//!
//! Not here: other browsers, and the machine's fonts.
#![forbid(unsafe_code)]

pub mod agent;
pub mod base64;
pub mod browser;
pub mod http;
pub mod load;
pub mod pair;
pub mod relay;
