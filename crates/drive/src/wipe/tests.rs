use super::*;
use crate::nvme::capability::{Capabilities, Carving, NotCarvable};
use crate::nvme::model::{Faults, Model, SanitizeFault, Settings};
use crate::source::Source;
use spec::nvme::identify::capabilities::{Fna, Oacs, Sanicap};
use spec::nvme::{AdminOpcode, Status};
use std::cell::RefCell;
use std::io;

const SIZE: usize = 128 << 10;

fn options() -> Options {
    Options { chunk_bytes: 32 << 10, witnesses: 16, stalled_polls_max: 20 }
}

/// Fills every namespace with what must not survive.
fn used(settings: Settings, namespaces: usize) -> Model {
    let model = Model::new(settings, &vec![SIZE; namespaces]);
    let secret: Vec<u8> = b"secret! ".iter().copied().cycle().take(SIZE).collect();
    let faults = std::mem::take(&mut { model.clone() }.faults_of());
    for nsid in 1..=u32::try_from(namespaces).unwrap() {
        model.namespace(nsid).write_at(0, &secret).unwrap();
    }
    model.set_faults(faults);
    model
}

impl Model {
    /// Takes the faults away for as long as the drive is prepared.
    fn faults_of(&self) -> Faults {
        let taken = RefCell::new(Faults::default());
        self.change(|settings| *taken.borrow_mut() = std::mem::take(&mut settings.faults));
        taken.into_inner()
    }
}

fn target(nsid: u32) -> Target {
    Target {
        name: format!("nvme0n{nsid}"),
        serial: "MODEL0001".to_owned(),
        nsid,
        len_bytes: SIZE as u64,
        ..Target::default()
    }
}

fn begin(model: &Model, scope: Scope, key: Option<&str>) -> Wipe {
    let mut admin = model.clone();
    let capabilities = Capabilities::read(&mut admin).unwrap();
    let namespaces = crate::nvme::active_namespaces(&mut admin).unwrap().len();
    let plan = plan(scope, key.is_some(), Some(&capabilities), namespaces);
    Wipe::begin("w1", 42, target(1), (scope, key.map(str::to_owned)), plan, options(), 1000).unwrap()
}

/// Keys of a test.
#[derive(Default)]
struct Ring {
    keys: Vec<String>,
    clings: bool,
}

impl Keys for Ring {
    fn destroy(&mut self, id: &str) -> io::Result<()> {
        if !self.clings {
            self.keys.retain(|key| key != id);
        }
        Ok(())
    }

    fn exists(&self, id: &str) -> io::Result<bool> {
        Ok(self.keys.iter().any(|key| key == id))
    }
}

/// Keeps the last record, as text.
#[derive(Default)]
struct Paper(Option<String>);

impl Journal for Paper {
    fn save(&mut self, record: &Record) -> io::Result<()> {
        self.0 = Some(serde_json::to_string(record).unwrap());
        Ok(())
    }
}

fn with_hands<T>(model: &Model, keys: &mut dyn Keys, act: impl FnOnce(&mut Hands<'_>) -> T) -> T {
    let (mut admin, namespace) = (model.clone(), model.namespace(1));
    act(&mut Hands { admin: Some(&mut admin), medium: &namespace, keys, found: target(1) })
}

fn finish(model: &Model, wipe: &mut Wipe, keys: &mut dyn Keys) -> Certificate {
    with_hands(model, keys, |hands| {
        run(wipe, hands, &mut Paper::default(), &mut || 2000, &mut |_, _| {}).unwrap()
    })
}

fn wiped(settings: Settings, scope: Scope) -> (Model, Certificate) {
    let model = used(settings, 1);
    let certificate = finish(&model, &mut begin(&model, scope, None), &mut NoKeys);
    (model, certificate)
}

fn held(certificate: &Certificate) -> Vec<Rung> {
    certificate.attempts.iter().filter(|attempt| attempt.held).map(|attempt| attempt.rung).collect()
}

fn failures(certificate: &Certificate) -> Vec<Rung> {
    certificate.attempts.iter().filter(|attempt| !attempt.held).map(|attempt| attempt.rung).collect()
}

fn assert_wiped(model: &Model, certificate: &Certificate) {
    assert_eq!(certificate.verdict, Verdict::Wiped, "{certificate}");
    assert_eq!(certificate.verified_bytes, SIZE as u64);
    assert!(model.bytes(1).iter().all(|&byte| byte == 0), "{certificate}");
}

fn nothing_but_writes() -> Settings {
    Settings { oacs: Oacs::new(), sanicap: Sanicap::new(), ..Settings::default() }
}

#[test]
fn a_namespace_is_formatted_cryptographically_where_that_reaches_no_other() {
    let model = used(Settings::default(), 2);
    let certificate = finish(&model, &mut begin(&model, Scope::Namespace, None), &mut NoKeys);
    assert_wiped(&model, &certificate);
    assert_eq!(
        (held(&certificate), certificate.erased_by),
        (vec![Rung::FormatCrypto], Some(Rung::FormatCrypto))
    );
    assert!(model.bytes(2).starts_with(b"secret!"), "the neighbour's data is gone");
}

#[test]
fn noise_that_an_erase_leaves_is_blanked_and_the_erase_still_counts() {
    let faults = Faults { crypto_leaves_noise: true, ..Faults::default() };
    let (model, certificate) = wiped(Settings { faults, ..Settings::default() }, Scope::Namespace);
    assert_wiped(&model, &certificate);
    assert_eq!(held(&certificate), [Rung::FormatCrypto, Rung::WriteZeroes]);
    assert_eq!(certificate.erased_by, Some(Rung::FormatCrypto));
}

#[test]
fn without_crypto_erase_a_format_erases_user_data() {
    let (model, certificate) = wiped(Settings { fna: Fna::new(), ..Settings::default() }, Scope::Namespace);
    assert_wiped(&model, &certificate);
    assert_eq!(held(&certificate), [Rung::FormatErase]);
    assert!(
        certificate.to_string().contains("left out  format with cryptographic erase: the drive does not")
    );
}

#[test]
fn a_format_that_would_reach_other_namespaces_is_never_sent_whichever_bit_says_so() {
    // 7h is what an Intel P3700 reports.
    for fna in [0x7, 0x5, 0x6, 0x1, 0x2, 0x3] {
        let model = used(Settings { fna: Fna::from_bits(fna), ..Settings::default() }, 2);
        let certificate = finish(&model, &mut begin(&model, Scope::Namespace, None), &mut NoKeys);
        assert_wiped(&model, &certificate);
        assert_eq!(held(&certificate), [Rung::WriteZeroes], "{fna:#x}");
        assert!(model.changes().is_empty(), "{fna:#x}: {:?}", model.changes());
        assert!(model.bytes(2).starts_with(b"secret!"), "{fna:#x}: the neighbour's data is gone");
    }
}

#[test]
fn a_scope_that_widens_after_the_plan_stops_the_format() {
    let model = used(Settings::default(), 2);
    let mut wipe = begin(&model, Scope::Namespace, None);
    // A firmware update between plan and deed.
    model.change(|settings| settings.fna = Fna::from_bits(0x7));
    let certificate = finish(&model, &mut wipe, &mut NoKeys);
    assert_wiped(&model, &certificate);
    assert_eq!(failures(&certificate), [Rung::FormatCrypto, Rung::FormatErase]);
    assert!(model.changes().is_empty() && model.bytes(2).starts_with(b"secret!"));
}

#[test]
fn a_part_of_a_drive_is_never_formatted_or_sanitized() {
    let (model, certificate) = wiped(Settings::default(), Scope::Part);
    assert_wiped(&model, &certificate);
    assert_eq!((held(&certificate), model.changes()), (vec![Rung::WriteZeroes], vec![]));
}

#[test]
fn a_key_is_destroyed_first_and_must_be_gone() {
    let model = used(Settings::default(), 1);
    let mut ring = Ring { keys: vec!["k".to_owned()], clings: false };
    let certificate = finish(&model, &mut begin(&model, Scope::Part, Some("k")), &mut ring);
    assert_wiped(&model, &certificate);
    assert_eq!(held(&certificate), [Rung::DestroyKey, Rung::WriteZeroes]);
    assert!(ring.keys.is_empty());

    let model = used(Settings::default(), 1);
    let mut ring = Ring { keys: vec!["k".to_owned()], clings: true };
    let certificate = finish(&model, &mut begin(&model, Scope::Part, Some("k")), &mut ring);
    assert_wiped(&model, &certificate);
    assert_eq!((failures(&certificate), certificate.erased_by), (vec![Rung::DestroyKey], None));
}

#[test]
fn a_whole_drive_is_sanitized_by_the_best_it_has() {
    for (sanicap, expected) in [
        (Sanicap::new().with_ces(true).with_bes(true).with_ows(true), Rung::SanitizeCrypto),
        (Sanicap::new().with_bes(true).with_ows(true), Rung::SanitizeBlock),
        (Sanicap::new().with_ows(true), Rung::SanitizeOverwrite),
        (Sanicap::new(), Rung::FormatCrypto),
    ] {
        let (model, certificate) = wiped(Settings { sanicap, ..Settings::default() }, Scope::Drive);
        assert_wiped(&model, &certificate);
        assert_eq!(held(&certificate), [expected]);
    }
}

#[test]
fn a_sanitize_that_fails_is_followed_by_the_next_and_by_nothing_if_there_is_none() {
    let mut faults = Faults::default();
    faults.sanitize[4] = SanitizeFault::Fails;
    let (model, certificate) =
        wiped(Settings { faults: faults.clone(), ..Settings::default() }, Scope::Drive);
    assert_wiped(&model, &certificate);
    assert_eq!(
        (failures(&certificate), held(&certificate)),
        (vec![Rung::SanitizeCrypto], vec![Rung::SanitizeBlock])
    );
    // In its failed state the drive takes no witness: the next sanitize ends that state, and one more is watched.
    assert_eq!(model.changes(), [AdminOpcode::Sanitize; 3]);

    faults.sanitize = [SanitizeFault::Fails; 5];
    let (model, certificate) = wiped(Settings { faults, ..Settings::default() }, Scope::Drive);
    assert_eq!(certificate.verdict, Verdict::Quarantined, "{certificate}");
    assert!(model.bytes(1).iter().any(|&byte| byte != 0));
}

#[test]
fn a_sanitize_that_stands_still_is_given_up() {
    let faults = Faults { sanitize: [SanitizeFault::Hangs; 5], ..Faults::default() };
    let (_, certificate) = wiped(Settings { faults, ..Settings::default() }, Scope::Drive);
    assert_eq!(certificate.verdict, Verdict::Quarantined);
    assert!(certificate.to_string().contains("too long"), "{certificate}");
}

#[test]
fn a_drive_that_lies_about_an_erase_is_caught_and_the_ladder_goes_on() {
    let lies = [
        (Scope::Namespace, Faults { format_lies: true, ..Faults::default() }),
        (Scope::Namespace, Faults { format_stops_at: Some(SIZE / 2), ..Faults::default() }),
        (Scope::Drive, Faults { format_lies: true, sanitize: [SanitizeFault::Lies; 5], ..Faults::default() }),
    ];
    for (scope, faults) in lies {
        let (model, certificate) = wiped(Settings { faults, ..Settings::default() }, scope);
        assert_wiped(&model, &certificate);
        assert_eq!((held(&certificate), certificate.erased_by), (vec![Rung::WriteZeroes], None));
        assert!(certificate.to_string().contains("still reads as before"), "{certificate}");
    }
}

#[test]
fn every_rung_that_blanks_is_read_back_and_the_next_is_tried_when_it_lied() {
    let settings = |faults: Faults| Settings { faults, ..nothing_but_writes() };
    let (model, certificate) = wiped(settings(Faults::default()), Scope::Namespace);
    assert_wiped(&model, &certificate);
    assert_eq!(held(&certificate), [Rung::WriteZeroes]);

    let (model, certificate) =
        wiped(settings(Faults { zeroing_fails: true, ..Faults::default() }), Scope::Namespace);
    assert_wiped(&model, &certificate);
    assert_eq!(held(&certificate), [Rung::Deallocate]);

    let lies = Faults { zeroing_lies: true, ..Faults::default() };
    let (model, certificate) = wiped(settings(lies), Scope::Namespace);
    assert_wiped(&model, &certificate);
    assert_eq!(
        (failures(&certificate), held(&certificate)),
        (vec![Rung::WriteZeroes, Rung::Deallocate], vec![Rung::Overwrite])
    );
}

#[test]
fn one_byte_that_does_not_change_is_enough_for_quarantine() {
    let byte = 100 * 1024 + 17;
    for (scope, settings) in [(Scope::Namespace, nothing_but_writes()), (Scope::Part, Settings::default())] {
        let faults = Faults { stuck_byte: Some(byte), ..Faults::default() };
        let (_, certificate) = wiped(Settings { faults, ..settings }, scope);
        assert_eq!(certificate.verdict, Verdict::Quarantined, "{certificate}");
        assert!(certificate.to_string().contains(&format!("byte {byte}")), "{certificate}");
        assert_eq!(certificate.verified_bytes, 0);
    }
}

#[test]
fn a_block_that_cannot_be_read_is_not_called_wiped() {
    let faults = Faults { unreadable_byte: Some(99_000), ..Faults::default() };
    let (_, certificate) = wiped(Settings { faults, ..Settings::default() }, Scope::Namespace);
    assert_eq!(certificate.verdict, Verdict::Quarantined, "{certificate}");
}

#[test]
fn a_drive_with_more_namespaces_is_not_called_wiped_by_rungs_that_reach_one() {
    let model = used(Settings { sanicap: Sanicap::new(), ..Settings::default() }, 2);
    let certificate = finish(&model, &mut begin(&model, Scope::Drive, None), &mut NoKeys);
    assert_eq!((certificate.verdict, certificate.attempts.len()), (Verdict::Quarantined, 0), "{certificate}");
    assert!(model.bytes(1).starts_with(b"secret!") && model.bytes(2).starts_with(b"secret!"));
}

/// Runs `effects` of them, the last without its outcome being taken: killed between deed and record. Returns the record, and
/// whether it had ended before.
fn killed_after(model: &Model, wipe: &mut Wipe, keys: &mut dyn Keys, effects: usize) -> (String, bool) {
    let mut paper = Paper::default();
    for left in (0..=effects).rev() {
        paper.save(wipe.record()).unwrap();
        if wipe.has_ended() {
            return (paper.0.unwrap(), true);
        }
        if left == 0 {
            break;
        }
        let effect = wipe.next();
        let outcome = with_hands(model, keys, |hands| perform(wipe, &effect, hands));
        if left > 1 {
            wipe.apply(outcome, 1500);
        }
    }
    (paper.0.unwrap(), false)
}

#[test]
fn a_wipe_killed_at_any_step_is_gone_on_with_and_ends_the_same() {
    let honest = Settings::default;
    let noisy = || Settings { faults: Faults { crypto_leaves_noise: true, ..Faults::default() }, ..honest() };
    let liar = || Settings {
        faults: Faults { format_lies: true, zeroing_lies: true, ..Faults::default() },
        ..honest()
    };
    let failing = || {
        let mut faults = Faults::default();
        faults.sanitize[4] = SanitizeFault::Fails;
        faults.sanitize[2] = SanitizeFault::Lies;
        Settings { faults, ..honest() }
    };
    type Case<'a> = (Scope, &'a dyn Fn() -> Settings, Option<&'a str>);
    let cases: [Case<'_>; 6] = [
        (Scope::Namespace, &honest, None),
        (Scope::Namespace, &noisy, Some("k")),
        (Scope::Namespace, &liar, None),
        (Scope::Drive, &honest, None),
        (Scope::Drive, &failing, None),
        (Scope::Part, &nothing_but_writes, Some("k")),
    ];
    for (case, (scope, settings, key)) in cases.into_iter().enumerate() {
        for effects in 0.. {
            let model = used(settings(), 1);
            let mut keys = Ring { keys: vec!["k".to_owned()], clings: false };
            let mut wipe = begin(&model, scope, key);
            let (text, ended) = killed_after(&model, &mut wipe, &mut keys, effects);
            let mut successor = Wipe::resume(Record::parse(&text).unwrap()).unwrap();
            let certificate = finish(&model, &mut successor, &mut keys);
            assert_wiped(&model, &certificate);
            assert_eq!(keys.keys.is_empty(), key.is_some(), "case {case}, killed after {effects}");
            if ended {
                assert!(effects > 3, "case {case} ended after {effects}");
                break;
            }
        }
    }
}

#[test]
fn a_sanitize_that_runs_when_its_host_dies_is_waited_for() {
    let model = used(Settings { sanitize_polls: 6, ..Settings::default() }, 1);
    let mut wipe = begin(&model, Scope::Drive, None);
    // Witnesses, the command, two looks.
    let (text, _) = killed_after(&model, &mut wipe, &mut NoKeys, 4);
    let certificate = finish(&model, &mut Wipe::resume(Record::parse(&text).unwrap()).unwrap(), &mut NoKeys);
    assert_wiped(&model, &certificate);
    assert_eq!(model.changes(), [AdminOpcode::Sanitize]);
}

#[test]
fn another_drive_under_the_same_name_is_left_alone() {
    let model = used(Settings::default(), 1);
    let mut wipe = begin(&model, Scope::Namespace, None);
    let (mut admin, namespace) = (model.clone(), model.namespace(1));
    for change in [
        |found: &mut Target| found.serial = "OTHER".to_owned(),
        |found: &mut Target| found.len_bytes += 4096,
        |found: &mut Target| found.nsid = 2,
        |found: &mut Target| found.wwid = Some("eui.1".to_owned()),
    ] {
        let mut found = target(1);
        change(&mut found);
        let mut hands = Hands { admin: Some(&mut admin), medium: &namespace, keys: &mut NoKeys, found };
        let result = run(&mut wipe, &mut hands, &mut Paper::default(), &mut || 0, &mut |_, _| {});
        assert!(matches!(result, Err(RunError::OtherDrive { .. })));
    }
    assert!(model.bytes(1).starts_with(b"secret!"));
}

#[test]
fn without_a_record_nothing_is_done() {
    struct Full;
    impl Journal for Full {
        fn save(&mut self, _: &Record) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let model = used(Settings::default(), 1);
    let mut wipe = begin(&model, Scope::Namespace, None);
    let result =
        with_hands(&model, &mut NoKeys, |hands| run(&mut wipe, hands, &mut Full, &mut || 0, &mut |_, _| {}));
    assert!(matches!(result, Err(RunError::Journal(_))));
    assert!(model.bytes(1).starts_with(b"secret!") && model.changes().is_empty());
}

#[test]
fn a_drive_that_refuses_everything_ends_in_quarantine_and_never_in_a_panic() {
    let status = Some(Status::INTERNAL_ERROR);
    let faults = Faults {
        format_status: status,
        zeroing_lies: true,
        stuck_byte: Some(0),
        sanitize: [SanitizeFault::Fails; 5],
        ..Faults::default()
    };
    for scope in [Scope::Part, Scope::Namespace, Scope::Drive] {
        let (_, certificate) = wiped(Settings { faults: faults.clone(), ..Settings::default() }, scope);
        assert_eq!(certificate.verdict, Verdict::Quarantined, "{certificate}");
    }
}

#[test]
fn records_that_make_no_sense_are_refused() {
    let model = used(Settings::default(), 1);
    let wipe = begin(&model, Scope::Namespace, None);
    let good = serde_json::to_string(wipe.record()).unwrap();
    assert!(Record::parse(&good).is_ok());
    for (from, to) in [
        ("\"chunk_bytes\":32768", "\"chunk_bytes\":0"),
        ("\"chunk_bytes\":32768", "\"chunk_bytes\":18446744073709551615"),
        ("\"len_bytes\":131072", "\"len_bytes\":0"),
        ("\"offset_bytes\":0", "\"offset_bytes\":18446744073709551615"),
        ("\"step\":\"witness\",\"rung\":0", "\"step\":\"witness\",\"rung\":99"),
        ("\"witnesses\":16", "\"witnesses\":4294967295"),
        ("\"version\":1", "\"version\":2"),
        ("{", ""),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        assert!(Record::parse(&text).is_err(), "{to}");
    }
    assert!(matches!(
        Record::parse(&good.replace("\"version\":1", "\"version\":2")),
        Err(RecordError::Newer(2))
    ));
}

#[test]
fn a_record_in_a_file_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = used(Settings::default(), 1);
    let wipe = begin(&model, Scope::Namespace, None);
    let mut journal = FileJournal::new(&folder.path().join("w1.json"));
    assert!(journal.load().unwrap().is_none());
    journal.save(wipe.record()).unwrap();
    assert_eq!(&journal.load().unwrap().unwrap().unwrap(), wipe.record());
}

#[test]
fn a_file_is_wiped_by_the_real_system_calls() {
    let folder = tempfile::tempdir().unwrap();
    for size in [SIZE, SIZE - 100] {
        let path = folder.path().join("drive.img");
        std::fs::write(&path, vec![7_u8; size]).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let medium = DirectMedium::new(file, 0, size as u64).unwrap();
        let found = Target { len_bytes: size as u64, nsid: 0, ..target(0) };
        let plan = plan(Scope::Drive, false, None, 0);
        let mut wipe = Wipe::begin("f", 1, found.clone(), (Scope::Drive, None), plan, options(), 0).unwrap();
        let mut hands = Hands { admin: None, medium: &medium, keys: &mut NoKeys, found };
        let certificate =
            run(&mut wipe, &mut hands, &mut Paper::default(), &mut || 1, &mut |_, _| {}).unwrap();
        assert_eq!(certificate.verdict, Verdict::Wiped, "{certificate}");
        assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 0));
        assert_eq!(medium.len_bytes(), size as u64);
    }
}

#[test]
fn a_drive_is_carved_only_if_its_numbers_say_so() {
    let carving = |settings: Settings| Carving::read(&mut Model::new(settings, &[SIZE])).unwrap();
    let good = carving(Settings::default()).unwrap();
    assert_eq!((good.namespaces, good.namespaces_left, good.wiped_one_by_one), (1, 15, true));
    assert!(good.fits(15, 1 << 18).is_ok());
    for (wanted, bytes) in [(16, 1 << 18), (2, 1 << 23), (u32::MAX, u64::MAX)] {
        assert!(matches!(good.fits(wanted, bytes), Err(NotCarvable::DoesNotFit { .. })), "{wanted}");
    }
    // As a Samsung MZ1LB1T9HALS: the bit is set, and there is one namespace.
    let one = carving(Settings { nn: 1, ..Settings::default() });
    assert_eq!(one, Err(NotCarvable::OneNamespace { namespaces_max: 1 }));
    let none = carving(Settings { oacs: Oacs::new().with_fnvms(true), ..Settings::default() });
    assert_eq!(none, Err(NotCarvable::NoManagement));
    let unsized_drive = Settings { total_bytes: 0, unallocated_bytes: Some(0), ..Settings::default() };
    assert_eq!(carving(unsized_drive), Err(NotCarvable::NoCapacity));
    let odd = carving(Settings { unallocated_bytes: Some(u64::MAX), ..Settings::default() });
    assert!(matches!(odd, Err(NotCarvable::Contradiction { .. })));
    let p3700 = carving(Settings { fna: Fna::from_bits(0x7), ..Settings::default() }).unwrap();
    assert!(!p3700.wiped_one_by_one);
}

#[test]
fn a_drive_is_held_from_the_first_step_of_its_wipe_until_the_certificate_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("drive.img");
    std::fs::write(&image, vec![0; SIZE]).unwrap();
    let device = crate::discovery::Host::default().find(&image).unwrap();
    let mut shelf = Shelf::new(&folder.path().join("wipes"));
    assert_eq!(shelf.holds(&device).unwrap(), None);
    let model = used(Settings::default(), 1);
    let mut wipe = begin(&model, Scope::Namespace, None);
    let mut record = wipe.record().clone();
    record.target = Target::of(&device);
    shelf.save(&record).unwrap();
    assert_eq!(shelf.holds(&device).unwrap(), Some(Step::Witness { rung: 0 }));
    let mut certificate = finish(&model, &mut wipe, &mut NoKeys);
    certificate.target = record.target.clone();
    let kept = shelf.conclude(&certificate).unwrap();
    assert_eq!(
        serde_json::from_str::<Certificate>(&std::fs::read_to_string(kept).unwrap()).unwrap(),
        certificate
    );
    assert_eq!(shelf.holds(&device).unwrap(), None);
    // A whole drive's wipe holds each of its namespaces.
    record.scope = Scope::Drive;
    record.target.nsid = 7;
    record.at = Step::Quarantined;
    shelf.save(&record).unwrap();
    assert_eq!(shelf.holds(&device).unwrap(), Some(Step::Quarantined));
}

#[test]
fn a_damaged_record_of_a_drive_holds_it_and_one_of_another_drive_or_a_certificate_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("drive.img");
    std::fs::write(&image, vec![0; SIZE]).unwrap();
    let device = crate::discovery::Host::default().find(&image).unwrap();
    let wipes = folder.path().join("wipes");
    let shelf = Shelf::new(&wipes);
    let target = Target::of(&device);
    std::fs::create_dir(&wipes).unwrap();
    let stem: String =
        target.serial.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(128).collect();
    for name in [format!("{stem}X-7.record.json"), format!("{stem}-7.certificate.json")] {
        std::fs::write(wipes.join(name), "no record").unwrap();
    }
    assert_eq!(shelf.holds(&device).unwrap(), None);
    let damaged = wipes.join(format!("{stem}-7.record.json"));
    std::fs::write(&damaged, "no record").unwrap();
    assert_eq!(shelf.holds(&device).unwrap(), Some(Step::Quarantined));
    std::fs::remove_file(damaged).unwrap();
    assert_eq!(shelf.holds(&device).unwrap(), None);
}

#[test]
fn certificates_do_not_hide_a_record_and_too_many_records_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("drive.img");
    std::fs::write(&image, vec![0; SIZE]).unwrap();
    let device = crate::discovery::Host::default().find(&image).unwrap();
    let mut shelf = Shelf::new(&folder.path().join("wipes"));
    let model = used(Settings::default(), 1);
    let mut record = begin(&model, Scope::Namespace, None).record().clone();
    record.target = Target::of(&device);
    let own_nsid = record.target.nsid;
    let wipes = folder.path().join("wipes");
    std::fs::create_dir(&wipes).unwrap();
    for at in 0..4200 {
        std::fs::write(wipes.join(format!("{at}.certificate.json")), "").unwrap();
    }
    (record.scope, record.target.nsid) = (Scope::Drive, own_nsid + 1);
    shelf.save(&record).unwrap();
    assert_eq!(shelf.holds(&device).unwrap(), Some(Step::Witness { rung: 0 }));
    // Records of other namespaces alone hold nothing, but nobody reads on for ever.
    record.scope = Scope::Namespace;
    shelf.save(&record).unwrap();
    let is_record = |path: &std::path::PathBuf| path.to_string_lossy().ends_with(".record.json");
    let first = wipes.read_dir().unwrap().map(|entry| entry.unwrap().path()).find(is_record).unwrap();
    let name = first.file_name().unwrap().to_string_lossy().into_owned();
    let stem = name.strip_suffix(&format!("-{}.record.json", own_nsid + 1)).unwrap();
    for nsid in 0..4096 {
        std::fs::hard_link(&first, wipes.join(format!("{stem}-{}.record.json", 100 + nsid))).unwrap();
    }
    let error = shelf.holds(&device).unwrap_err().to_string();
    assert!(error.contains("more than 4096 records"), "{error}");
}
