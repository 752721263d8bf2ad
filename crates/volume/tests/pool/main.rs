//! What a pool promises, on a drive that forgets what was not flushed.

mod along;
mod checks;
mod crashes;
mod damage;
mod drive;
mod golden;
mod openings;
mod passages;
mod promises;
mod sequences;
mod speed;
mod world;
