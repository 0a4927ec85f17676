use stateright::{Checker, HasDiscoveries, Model};

use crate::*;

const CREATE: Role = Role::Create { slot: 0, path: LEAF, adopt: false };
const CREATE_OTHER: Role = Role::Create { slot: 1, path: LEAF, adopt: false };
const CREATE_ABOVE: Role = Role::Create { slot: 1, path: PARENT, adopt: false };
const ADOPT: Role = Role::Create { slot: 0, path: LEAF, adopt: true };
const ADOPT_OTHER: Role = Role::Create { slot: 1, path: LEAF, adopt: true };
const REPAIR: Role = Role::Repair { slot: 0 };
const REMOVE: Role = Role::Remove { slot: 0, kill: true };
const REMOVE_WITHOUT_KILL: Role = Role::Remove { slot: 0, kill: false };
const REMOVE_OTHER: Role = Role::Remove { slot: 1, kill: true };
const GC: Role = Role::Gc { store: 0, kill: true };
const GC_OTHER: Role = Role::Gc { store: 1, kill: true };

/// A manager that uses the same path without regard for Ringfence, and systemd, which removes empty directories on v1.
const INTERFERE: [Foreign; 5] =
    [Foreign::MakeParent, Foreign::MakeLeaf, Foreign::Populate, Foreign::Leave, Foreign::RemoveLeaf];

const RUNS: &str = "a process runs";
const LOSES: &str = "a creator loses";
const UNCLEAR: &str = "a record is unclear";
const LEFTOVER: &str = "a leftover is collected";
const DAMAGED: &str = "a sandbox is damaged";
const KILLS: &str = "a removal kills";
const UNDONE: &str = "a creation is undone";

fn race(rules: Rules) -> Protocol {
    Protocol { hierarchies: 2, ..Protocol::new(rules, &[CREATE, CREATE_OTHER, REMOVE, GC_OTHER]) }
}

fn one_store(rules: Rules) -> Protocol {
    Protocol { stores: [0, 0], ..Protocol::new(rules, &[CREATE, CREATE_OTHER, REMOVE, GC]) }
}

fn nested(rules: Rules) -> Protocol {
    Protocol::new(rules, &[CREATE, CREATE_ABOVE, REMOVE_OTHER, GC])
}

fn adoption(rules: Rules) -> Protocol {
    let adopters = Protocol::new(rules, &[ADOPT, ADOPT_OTHER, REMOVE, GC]);
    Protocol { has_leaf: true, ..adopters }.foreign(&[Foreign::Populate, Foreign::Leave])
}

fn adoption_of_a_new_directory(rules: Rules) -> Protocol {
    let foreign = [&INTERFERE[..], &[Foreign::RemoveParent]].concat();
    Protocol { has_leaf: true, ..Protocol::new(rules, &[ADOPT, CREATE_OTHER, REMOVE, GC]) }.foreign(&foreign)
}

fn interference(rules: Rules) -> Protocol {
    Protocol::new(rules, &[CREATE, CREATE_OTHER, REMOVE, GC]).foreign(&INTERFERE)
}

fn repair(rules: Rules) -> Protocol {
    let repaired = Protocol::new(rules, &[CREATE, REPAIR, REMOVE, GC]);
    Protocol { hierarchies: 2, ..repaired }.foreign(&[
        Foreign::RemoveLeaf,
        Foreign::RemoveParent,
        Foreign::MakeLeaf,
    ])
}

fn damage(rules: Rules) -> Protocol {
    Protocol::new(rules, &[CREATE]).foreign(&INTERFERE)
}

fn refused_removal(rules: Rules) -> Protocol {
    Protocol::new(rules, &[CREATE, REMOVE_WITHOUT_KILL, GC])
}

fn lost_record(rules: Rules) -> Protocol {
    Protocol::new(rules, &[CREATE, CREATE_OTHER, GC, GC]).foreign(&[Foreign::LoseRecord])
}

/// Explores all states: no property fails, there are as many states as there should be, and the interesting ones.
fn assert_holds(protocol: Protocol, minimum: usize, reached: &[&'static str]) {
    let checker = protocol.checker().spawn_bfs().join();
    println!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    for (name, path) in checker.discoveries() {
        assert!(
            !ALWAYS.contains(&name),
            "{name}: {:?}: {:#?}",
            path.clone().into_actions(),
            path.last_state()
        );
    }
    assert!(checker.is_done() && checker.unique_state_count() >= minimum, "{}", checker.unique_state_count());
    for name in reached {
        assert!(checker.discovery(name).is_some(), "never reached: {name}");
    }
}

/// The checker finds a state in which the property does not hold.
fn assert_fails(protocol: Protocol, property: &'static str) {
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyOf([property].into())).spawn_bfs().join();
    assert!(checker.discovery(property).is_some(), "no violation in {} states", checker.unique_state_count());
}

#[test]
fn new_rules_hold_when_two_stores_race_in_two_hierarchies() {
    assert_holds(race(Rules::ALL), 400_000, &[RUNS, LOSES, UNCLEAR, KILLS, UNDONE]);
}

#[test]
fn new_rules_hold_when_every_store_collects_garbage() {
    let all = Protocol::new(Rules::ALL, &[CREATE, CREATE_OTHER, REMOVE, GC, GC_OTHER]);
    assert_holds(all, 400_000, &[RUNS, LOSES, UNCLEAR, KILLS, UNDONE]);
}

#[test]
fn new_rules_hold_for_two_creations_in_one_store() {
    assert_holds(one_store(Rules::ALL), 50_000, &[RUNS, LOSES, UNCLEAR, KILLS, UNDONE]);
    let same_id = Protocol::new(Rules::ALL, &[CREATE, CREATE, REMOVE, GC]);
    assert_holds(same_id, 10_000, &[RUNS, LOSES, UNCLEAR, KILLS]);
}

#[test]
fn new_rules_hold_for_one_path_inside_the_other() {
    assert_holds(nested(Rules::ALL), 30_000, &[RUNS, LOSES, UNCLEAR, KILLS, UNDONE]);
    assert_holds(
        Protocol { hierarchies: 2, ..nested(Rules::ALL) },
        50_000,
        &[RUNS, LOSES, UNCLEAR, KILLS, UNDONE],
    );
}

#[test]
fn new_rules_hold_for_adoption() {
    assert_holds(adoption(Rules::ALL), 20_000, &[RUNS, LOSES, KILLS, UNDONE]);
    assert_holds(adoption_of_a_new_directory(Rules::ALL), 100_000, &[RUNS, LOSES, UNCLEAR, KILLS, UNDONE]);
    let two = Protocol { hierarchies: 2, ..adoption(Rules::ALL) };
    assert_holds(two, 50_000, &[RUNS, LOSES, KILLS, UNDONE]);
}

#[test]
fn new_rules_hold_beside_a_foreign_manager() {
    assert_holds(interference(Rules::ALL), 500_000, &[RUNS, LOSES, UNCLEAR, KILLS, UNDONE]);
    let two =
        Protocol { hierarchies: 2, ..Protocol::new(Rules::ALL, &[CREATE, REMOVE, GC]).foreign(&INTERFERE) };
    assert_holds(two, 100_000, &[RUNS, DAMAGED, UNCLEAR, KILLS, UNDONE]);
}

#[test]
fn new_rules_hold_for_repair() {
    assert_holds(repair(Rules::ALL), 100_000, &[RUNS, DAMAGED, UNCLEAR, KILLS, UNDONE]);
    let race = Protocol::new(Rules::ALL, &[CREATE, CREATE_OTHER, REPAIR]).foreign(&[Foreign::RemoveLeaf]);
    assert_holds(Protocol { hierarchies: 2, ..race }, 50_000, &[RUNS, DAMAGED, UNCLEAR, LOSES]);
}

#[test]
fn new_rules_hold_for_a_lost_record() {
    assert_holds(lost_record(Rules::ALL), 100_000, &[RUNS, LOSES, LEFTOVER]);
}

#[test]
fn new_rules_hold_for_a_removal_that_is_refused() {
    assert_holds(refused_removal(Rules::ALL), 1_000, &[RUNS, UNCLEAR]);
}

#[test]
fn old_rules_fail_a_loser_kills_the_winner() {
    assert_fails(Protocol::new(Rules::OLD, &[CREATE, CREATE_OTHER]), NO_FOREIGN_KILL);
}

#[test]
fn old_rules_fail_gc_kills_in_another_store() {
    assert_fails(Protocol::new(Rules::OLD, &[CREATE, GC_OTHER]), NO_FOREIGN_KILL);
}

#[test]
fn old_rules_fail_rm_kills_what_has_its_path() {
    let foreign = [Foreign::RemoveLeaf, Foreign::MakeLeaf, Foreign::Populate];
    assert_fails(Protocol::new(Rules::OLD, &[CREATE, REMOVE]).foreign(&foreign), NO_FOREIGN_KILL);
}

#[test]
fn old_rules_fail_rm_removes_the_operators_parent() {
    assert_fails(Protocol::new(Rules::OLD, &[CREATE, REMOVE]), NO_FOREIGN_RMDIR);
}

#[test]
fn old_rules_fail_a_process_starts_in_a_foreign_directory() {
    let foreign = [Foreign::RemoveLeaf, Foreign::MakeLeaf];
    assert_fails(Protocol::new(Rules::OLD, &[CREATE]).foreign(&foreign), CONFINED);
}

#[test]
fn old_rules_fail_a_crash_leaves_a_directory_without_a_record() {
    assert_fails(Protocol::new(Rules::OLD, &[CREATE, GC]), ACCOUNTED);
}

/// Switches one rule off: the property fails, so the rule is needed and the model can fail.
macro_rules! needed {
    ($($test:ident: $rule:ident, $scenario:expr, $property:expr;)*) => {$(
        #[test]
        fn $test() {
            assert_fails($scenario(Rules { $rule: false, ..Rules::ALL }), $property);
        }
    )*};
}

needed! {
    marks_have_to_name_the_store: store_identity, race, NO_FOREIGN_KILL;
    marks_have_to_name_the_creation: creation_identity, one_store, NO_FOREIGN_RMDIR;
    a_mark_must_not_replace_another: exclusive_mark, adoption, NO_FOREIGN_KILL;
    removal_has_to_compare_the_mark: compare_mark, interference, NO_FOREIGN_KILL;
    undo_must_keep_to_its_own_directories: undo_own_only, race, NO_FOREIGN_KILL;
    removal_must_keep_the_ancestors_of_others: mark_ancestors, race, NO_FOREIGN_RMDIR;
    gc_has_to_read_records_after_the_search: records_after_search, one_store, NO_FOREIGN_RMDIR;
    gc_has_to_compare_the_mark_after_reading_records: leftover_compares_again, adoption, NO_FOREIGN_RMDIR;
    spawn_has_to_compare_the_mark: spawn_compares_mark, damage, CONFINED;
    spawn_has_to_wait_for_repair: spawn_takes_lock, repair, CONFINED;
    creation_has_to_look_around_after_it_marks: look_around_after_mark, nested, NO_FOREIGN_KILL;
    a_record_has_to_say_that_directories_are_being_made: record_making, race, ACCOUNTED;
    a_record_has_to_stay_if_an_adoption_overtakes: record_overtaken, adoption_of_a_new_directory, ACCOUNTED;
    a_record_has_to_say_that_repair_makes_directories: record_repair, repair, ACCOUNTED;
    a_record_has_to_name_missing_ancestors: record_ancestors, race, ACCOUNTED;
    removal_has_to_keep_what_the_record_says: removal_keeps_facts, adoption, NO_FOREIGN_KILL;
    nothing_may_be_killed_before_a_sandbox_is_ready: kill_only_ready, nested, NO_FOREIGN_KILL;
    gc_has_to_refuse_as_rm_would: gc_refuses_as_rm, refused_removal, NO_FOREIGN_KILL;
    an_unfinished_adoption_has_to_give_the_directory_back: give_back, adoption, NO_FOREIGN_RMDIR;
    creation_has_to_make_removed_ancestors_again: retry_ancestors, race, UNDISTURBED;
    gc_has_to_collect_empty_ancestors: gc_collects_ancestors, interference, ACCOUNTED;
}

/// What the kernel's interface leaves open: if the directory is replaced between comparing its inode and rmdir(2), an
/// empty directory of somebody else is removed. Nothing is killed, and no process runs outside: a spawn finds it damaged.
#[test]
fn replacing_a_directory_before_rmdir_loses_an_empty_directory_at_most() {
    let rules = Rules { rmdir_is_atomic: false, ..Rules::ALL };
    let protocol = || Protocol::new(rules, &[CREATE, CREATE_OTHER, REMOVE]).foreign(&INTERFERE);
    assert_fails(protocol(), NO_FOREIGN_RMDIR);
    let checker = protocol().checker().spawn_bfs().join();
    for property in ALWAYS.into_iter().filter(|property| *property != NO_FOREIGN_RMDIR) {
        assert!(checker.discovery(property).is_none(), "{property}");
    }
}

/// What the kernel's interface leaves open: mkdir(2) returns no descriptor. If the directory is replaced before it is
/// opened, the new one is marked.
#[test]
fn replacing_a_directory_between_mkdir_and_open_lets_it_be_marked() {
    let rules = Rules { mkdir_is_atomic: false, ..Rules::ALL };
    assert_fails(interference(rules), NO_FOREIGN_KILL);
}
