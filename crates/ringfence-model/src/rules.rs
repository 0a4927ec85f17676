//! The rules of the protocol, each of which can be switched off.

/// The rules of the protocol. With every rule on it is the protocol of `docs/protocol.md`; the tests switch rules off
/// to show that the checker then finds a violation.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each rule is on or off by itself")]
pub struct Rules {
    /// A mark names the random identity of the store. Off: the path of the state directory, the same in two containers.
    pub store_identity: bool,
    /// A mark names the random identity of the creation. Off: it names the store alone, and a record claims its path.
    pub creation_identity: bool,
    /// A directory is marked only if it has no mark yet (XATTR_CREATE).
    pub exclusive_mark: bool,
    /// Removal and `gc` compare the mark before they act. Off: they act on the directory that has the record's path.
    pub compare_mark: bool,
    /// A failed creation removes only directories that its own mkdir made. Off: it kills and removes what is at the path.
    pub undo_own_only: bool,
    /// An ancestor is removed only if it is marked as made on the way. Off: every empty ancestor is removed.
    pub mark_ancestors: bool,
    /// `gc` reads the records after it has seen a mark. Off: it reads them before the search.
    pub records_after_search: bool,
    /// `gc` compares the mark of a leftover once more after it has read the records.
    pub leftover_compares_again: bool,
    /// A process is started only if every directory carries the sandbox's mark. Off: in whatever has the path.
    pub spawn_compares_mark: bool,
    /// A process is started under the lock of the ID, and not while `repair` makes directories.
    pub spawn_takes_lock: bool,
    /// A creation looks for sandboxes above and below its leaf after it has marked it. Off: only above, before mkdir.
    pub look_around_after_mark: bool,
    /// A record says that directories are being made, until all are marked. Off: an unmarked directory is never ours.
    pub record_making: bool,
    /// A creation keeps its record if somebody else has marked a directory that it has just made.
    pub record_overtaken: bool,
    /// `repair` sets that flag, too, before it makes a directory.
    pub record_repair: bool,
    /// A record names the missing ancestors before mkdir makes them.
    pub record_ancestors: bool,
    /// A removal keeps what the record said of the creation. Off: a removal that was cut short looks like any other.
    pub removal_keeps_facts: bool,
    /// Nothing is killed for a sandbox that was never ready: its own processes start later.
    pub kill_only_ready: bool,
    /// What `rm` without --kill has begun is rolled back by `gc` if processes are inside, as `rm` itself would.
    pub gc_refuses_as_rm: bool,
    /// An adoption that did not complete takes its mark back and leaves the directory.
    pub give_back: bool,
    /// A creation starts again with the ancestors if one of them was removed before it made its leaf.
    pub retry_ancestors: bool,
    /// `gc` removes empty directories that are marked as ancestors.
    pub gc_collects_ancestors: bool,
    /// compare, then rmdir is one step. Off: two, as in the kernel's interface.
    pub rmdir_is_atomic: bool,
    /// mkdir, then open is one step. Off: two, as in the kernel's interface.
    pub mkdir_is_atomic: bool,
}

impl Rules {
    /// The protocol, all rules on.
    pub const ALL: Self = Self {
        store_identity: true,
        creation_identity: true,
        exclusive_mark: true,
        compare_mark: true,
        undo_own_only: true,
        mark_ancestors: true,
        records_after_search: true,
        leftover_compares_again: true,
        spawn_compares_mark: true,
        spawn_takes_lock: true,
        look_around_after_mark: true,
        record_making: true,
        record_overtaken: true,
        record_repair: true,
        record_ancestors: true,
        removal_keeps_facts: true,
        kill_only_ready: true,
        gc_refuses_as_rm: true,
        give_back: true,
        retry_ancestors: true,
        gc_collects_ancestors: true,
        rmdir_is_atomic: true,
        mkdir_is_atomic: true,
    };

    /// The rules before marks had identities.
    pub const OLD: Self = Self {
        store_identity: false,
        creation_identity: false,
        exclusive_mark: false,
        compare_mark: false,
        undo_own_only: false,
        mark_ancestors: false,
        leftover_compares_again: false,
        spawn_compares_mark: false,
        spawn_takes_lock: false,
        look_around_after_mark: false,
        record_making: false,
        record_overtaken: false,
        record_repair: false,
        record_ancestors: false,
        removal_keeps_facts: false,
        kill_only_ready: false,
        gc_refuses_as_rm: false,
        retry_ancestors: false,
        gc_collects_ancestors: false,
        ..Self::ALL
    };
}
