#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use crate::discovery::Host;
use crate::nvme::capability::NotCarvable;
use crate::nvme::model::{Model, Settings};
use crate::nvme::namespaces::{Shape, ShapeError, attach, create, delete, detach};
use crate::nvme::{Admin, AdminError, Data, Request, active_namespaces, allocated_namespaces};
use crate::wipe::{Medium, Zeroing};
use spec::nvme::identify::capabilities::Oacs;
use spec::nvme::{AdminOpcode, Status};
use std::io;

const MIB: u64 = 1 << 20;

/// A drive of 8 MiB with a tenant's namespace of 1 MiB, full of data.
fn drive(settings: Settings) -> Model {
    let model = Model::new(settings, &[1 << 20]);
    model.namespace(1).write_at(0, &vec![0xAB; 1 << 20]).unwrap();
    model
}

fn status(result: Result<impl Sized, AdminError>) -> Option<Status> {
    result.err().and_then(|error| error.status())
}

/// Everything that survives a crash, and how many more effects there are before the next.
struct World {
    model: Model,
    kept: Option<Grant>,
    left: u32,
}

impl World {
    /// Whether the process is dead by now.
    fn dies(&mut self) -> bool {
        let dead = self.left == 0;
        self.left = self.left.saturating_sub(1);
        dead
    }
}

/// A drive whose host dies before or after a command.
struct Dying<'a>(&'a std::cell::RefCell<World>);

impl Admin for Dying<'_> {
    fn submit(&mut self, request: &Request, data: Data<'_>) -> Result<u32, AdminError> {
        let mut world = self.0.borrow_mut();
        let asks = matches!(request.opcode, AdminOpcode::Identify | AdminOpcode::GetLogPage);
        let gone =
            || AdminError::Transport { opcode: request.opcode, error: io::ErrorKind::BrokenPipe.into() };
        if !asks && world.dies() {
            return Err(gone());
        }
        let answer = world.model.submit(request, data);
        if !asks && world.dies() {
            return Err(gone());
        }
        answer
    }
}

/// Goes on until the end, or a death.
fn live(world: &std::cell::RefCell<World>) -> Result<(), GrantError> {
    let dead = || GrantError::Changed("dead".to_owned());
    let mut save = |grant: &Grant| {
        let mut world = world.borrow_mut();
        if world.dies() {
            return Err(dead());
        }
        world.kept = Some(grant.clone());
        if world.dies() { Err(dead()) } else { Ok(()) }
    };
    let mut grant = world.borrow().kept.clone().unwrap();
    loop {
        match advance(&mut grant, &mut Dying(world), 1, &mut save)? {
            Need::Nothing => return Ok(()),
            Need::Forget => {
                world.borrow_mut().kept = None;
                return Ok(());
            }
            Need::Wipe => {
                let namespace = world.borrow().model.namespace(grant.nsid.unwrap());
                namespace.zero(0, grant.size_bytes, Zeroing::WriteZeroes).unwrap();
                grant.wiped();
                save(&grant)?;
            }
        }
    }
}

#[test]
fn a_namespace_is_made_and_taken_back_once_whatever_dies_between_any_two_steps() {
    for (names, death) in (0..60).flat_map(|death| [(true, death), (false, death)]) {
        let model = drive(Settings { names, ..Settings::default() });
        let shape = Shape::fit(&mut model.clone(), 2 * MIB, 4096).unwrap();
        let grant = Grant::of_namespace("a", "MODEL0001", shape);
        let world = std::cell::RefCell::new(World { model: model.clone(), kept: Some(grant), left: death });
        let died = live(&world).is_err();
        world.borrow_mut().left = u32::MAX;
        live(&world).unwrap_or_else(|error| panic!("death {death}: {error}"));
        let grant = world.borrow().kept.clone().unwrap();
        assert_eq!((grant.step, grant.nsid, grant.size_bytes), (Step::Given, Some(2), 2 * MIB));
        assert_eq!(allocated_namespaces(&mut model.clone()).unwrap(), [1, 2], "death {death}");
        assert_eq!(active_namespaces(&mut model.clone()).unwrap(), [1, 2], "death {death}");
        assert!(model.bytes(2).iter().all(|byte| *byte == 0), "nobody reads what the flash held");

        world.borrow_mut().kept.as_mut().unwrap().step = Step::Empty;
        world.borrow_mut().left = death;
        let died_again = live(&world).is_err();
        world.borrow_mut().left = u32::MAX;
        if world.borrow().kept.is_some() {
            live(&world).unwrap_or_else(|error| panic!("death {death} on the way back: {error}"));
        }
        assert_eq!(allocated_namespaces(&mut model.clone()).unwrap(), [1], "death {death}");
        assert!(model.bytes(1).iter().all(|byte| *byte == 0xAB), "the other tenant's data are as they were");
        assert!(world.borrow().kept.is_none());
        if !died && !died_again {
            assert!(death > 6, "deaths were between the steps");
            return;
        }
    }
    panic!("it never ended without a death");
}

#[test]
fn a_namespace_that_became_another_is_neither_detached_nor_deleted() {
    let model = drive(Settings::default());
    let shape = Shape::fit(&mut model.clone(), 2 * MIB, 512).unwrap();
    let grant = Grant::of_namespace("a", "MODEL0001", shape);
    let world = std::cell::RefCell::new(World { model: model.clone(), kept: Some(grant), left: u32::MAX });
    live(&world).unwrap();
    // Behind our back it is deleted, and somebody makes one of the same size with the same number.
    delete(&mut model.clone(), 2).unwrap();
    assert_eq!(create(&mut model.clone(), &shape).unwrap(), 2);
    for step in [Step::Detach, Step::Delete] {
        let mut grant = world.borrow().kept.clone().unwrap();
        grant.step = step;
        let refused = advance(&mut grant, &mut model.clone(), 1, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(&refused, GrantError::Changed(why) if why.contains("is not the one")), "{refused}");
    }
    assert_eq!(allocated_namespaces(&mut model.clone()).unwrap(), [1, 2]);
}

#[test]
fn of_two_namespaces_that_may_be_the_new_one_none_is_taken() {
    let model = drive(Settings::default());
    let shape = Shape::fit(&mut model.clone(), MIB, 512).unwrap();
    let mut grant = Grant::of_namespace("a", "MODEL0001", shape);
    (grant.step, grant.others) = (Step::Create, vec![1]);
    for _ in 0..2 {
        create(&mut model.clone(), &shape).unwrap();
    }
    let refused = advance(&mut grant, &mut model.clone(), 1, &mut |_| Ok(())).unwrap_err();
    assert!(refused.to_string().contains("[2, 3]"), "{refused}");
}

#[test]
fn a_drive_that_cannot_be_carved_is_refused_with_the_reason() {
    let refused = |settings: Settings, bytes: u64, block: u32| {
        Shape::fit(&mut drive(settings), bytes, block).unwrap_err()
    };
    let no_management = Settings { oacs: Oacs::new().with_fnvms(true), ..Settings::default() };
    let is = |error: ShapeError, wanted: fn(&NotCarvable) -> bool| match &error {
        ShapeError::NotCarvable(why) => assert!(wanted(why), "{error}"),
        _ => panic!("{error}"),
    };
    is(refused(no_management, MIB, 512), |why| matches!(why, NotCarvable::NoManagement));
    is(refused(Settings { nn: 1, ..Settings::default() }, MIB, 512), |why| {
        matches!(why, NotCarvable::OneNamespace { namespaces_max: 1 })
    });
    is(refused(Settings { total_bytes: 0, ..Settings::default() }, MIB, 512), |why| {
        matches!(why, NotCarvable::NoCapacity)
    });
    is(refused(Settings::default(), 8 * MIB, 512), |why| matches!(why, NotCarvable::DoesNotFit { .. }));
    let no_format = refused(Settings::default(), MIB, 1024).to_string();
    assert!(no_format.contains("512+0, 512+8, 4096+0"), "{no_format}");
    assert!(matches!(refused(Settings::default(), 0, 512), ShapeError::Size(0)));
}

#[test]
fn a_shape_has_the_fastest_format_without_metadata_and_wastes_no_capacity() {
    let model = drive(Settings { granularity_bytes: 3 << 19, ..Settings::default() });
    let shape = Shape::fit(&mut model.clone(), MIB, 4096).unwrap();
    assert_eq!((shape.bytes(), shape.format), (3 << 19, 2), "a multiple of the drive's granularity");
    assert_eq!(Shape::fit(&mut drive(Settings::default()), MIB, 512).unwrap().format, 0);
}

#[test]
fn the_model_answers_as_the_specification_says() {
    let mut model = drive(Settings { nn: 3, attached_max: 2, ..Settings::default() });
    let shape = Shape { blocks: 2048, block_bytes: 512, format: 0 };
    assert_eq!(create(&mut model, &shape).unwrap(), 2);
    assert_eq!(status(attach(&mut model, 2, 9)), Some(Status::CONTROLLER_LIST_INVALID));
    assert_eq!(status(detach(&mut model, 2, 1)), Some(Status::NAMESPACE_NOT_ATTACHED));
    attach(&mut model, 2, 1).unwrap();
    assert_eq!(status(attach(&mut model, 2, 1)), Some(Status::NAMESPACE_ALREADY_ATTACHED));
    assert_eq!(status(attach(&mut model, 2, 7)), Some(Status::NAMESPACE_IS_PRIVATE));
    assert_eq!(create(&mut model, &shape).unwrap(), 3);
    assert_eq!(status(attach(&mut model, 3, 1)), Some(Status::NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED));
    assert_eq!(status(create(&mut model, &shape)), Some(Status::NAMESPACE_IDENTIFIER_UNAVAILABLE));
    let huge = Shape { blocks: 1 << 30, ..shape };
    assert_eq!(status(create(&mut model, &huge)), Some(Status::NAMESPACE_INSUFFICIENT_CAPACITY));
    assert_eq!(status(create(&mut model, &Shape { format: 9, ..shape })), Some(Status::INVALID_FORMAT));
    assert_eq!(status(delete(&mut model, 5)), Some(Status::INVALID_NAMESPACE_OR_FORMAT));
    assert!(delete(&mut model, u32::MAX).is_err(), "all of them: not by mistake");
    assert_eq!(allocated_namespaces(&mut model).unwrap(), [1, 2, 3]);
}

#[test]
fn an_ssd_is_served_from_what_it_was_given_and_from_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("drive.img");
    std::fs::File::create(&path).unwrap().set_len(MIB).unwrap();
    let (host, grants) = (Host::default(), Grants::new(&folder.path().join("grants")));
    let device = host.find(&path).unwrap();
    let serial = device.confirmation();
    let served = |ssd: &str, what| grants.served(&host, ssd, &serial, what);
    assert!(matches!(served("a", What::Drive), Err(GrantError::NotGiven { .. })));
    let mut grant = Grant::of_drive("a", &device);
    grants.save(&grant).unwrap();
    assert!(served("a", What::Drive).is_err(), "it is not wiped yet");
    grant.wiped();
    grants.save(&grant).unwrap();
    assert_eq!(served("a", What::Drive).unwrap().path, device.path);
    assert!(matches!(served("b", What::Drive), Err(GrantError::NotGiven { .. })));
    assert!(matches!(served("a", What::Namespace), Err(GrantError::Another { .. })));
    assert!(matches!(grants.served(&host, "a", "other", What::Drive), Err(GrantError::Another { .. })));
    assert!(matches!(served("../a", What::Drive), Err(GrantError::Record { .. })));
    grants.save(&Grant { step: Step::Empty, ..grant.clone() }).unwrap();
    let refused = served("a", What::Drive).unwrap_err().to_string();
    assert!(refused.contains("godwit drive take-back a"), "{refused}");
    grants.save(&Grant { size_bytes: 4096, ..grant.clone() }).unwrap();
    assert!(matches!(served("a", What::Drive), Err(GrantError::Changed(_))));
    assert_eq!(grants.of_drive(&serial).unwrap().len(), 1);
    grants.remove("a").unwrap();
    assert!(grants.all().unwrap().is_empty());
}

#[test]
fn a_newer_or_damaged_record_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let grants = Grants::new(folder.path());
    let path = folder.path().join("a.json");
    for (text, says) in [
        (r#"{"version": 2, "what": "half-a-drive"}"#, "version 2"),
        (r#"{"version": 1}"#, "missing field"),
        ("", "EOF"),
        ("[[[[", "invalid type"),
    ] {
        std::fs::write(&path, text).unwrap();
        let refused = grants.load("a").unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
        assert!(grants.all().is_err(), "one that cannot be read may be anybody's");
    }
}
