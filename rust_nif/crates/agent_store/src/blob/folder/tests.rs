use std::collections::HashSet;

use proptest::prelude::*;

use super::super::Addresses;
use super::*;

struct Temporary(PathBuf);

impl Temporary {
    fn new() -> (Self, Folder) {
        let path = std::env::temp_dir().join(format!("singularity-blobs-{}-{}", std::process::id(), uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&path).unwrap();
        let folder = Folder::open(&path).unwrap();
        (Self(path), folder)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn address(content: &[u8]) -> Address {
    Addresses::new([7; 32]).of("t", content)
}

/// A whole search; what it asks about.
fn search(folder: &Folder, unnamed_for: Duration, named: &HashSet<Address>) -> usize {
    let (mut search, mut asked) = (folder.search().unwrap(), 0);
    while folder
        .look(&mut search, unnamed_for, &mut |address| {
            asked += 1;
            Ok(named.contains(address))
        })
        .unwrap()
    {}
    asked
}

fn in_trash(folder: &Folder) -> usize {
    std::fs::read_dir(folder.path.join(TRASH)).unwrap().count()
}

#[test]
fn what_no_row_names_goes_by_way_of_the_trash_and_what_one_names_stays() {
    let (_place, folder) = Temporary::new();
    let (kept, lost) = (address(b"kept"), address(b"lost"));
    folder.put(&kept, b"kept").unwrap();
    folder.put(&lost, b"lost").unwrap();
    std::fs::write(folder.path.join(format!("{lost}{PART}")), b"lo").unwrap();
    std::fs::write(folder.path.join("README"), b"somebody else's").unwrap();
    let named = HashSet::from([kept]);
    assert_eq!(search(&folder, Duration::from_secs(3600), &named), 0, "what was just put is left alone");
    search(&folder, Duration::ZERO, &named);
    assert_eq!(folder.get(&kept).unwrap().unwrap(), b"kept");
    assert_eq!(folder.get(&lost).unwrap(), None);
    search(&folder, Duration::ZERO, &named);
    assert_eq!(in_trash(&folder), 0);
    assert!(folder.path.join("README").exists() && !folder.path.join(format!("{lost}{PART}")).exists());
}

#[test]
fn a_second_put_touches_and_a_damaged_file_is_healed() {
    let (_place, folder) = Temporary::new();
    let (one, file) = (address(b"content"), folder.file(&address(b"content")));
    folder.put(&one, b"content").unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();
    folder.put(&one, b"content").unwrap();
    assert!(!older(&file, Duration::from_secs(60)), "it was touched");
    std::fs::write(&file, b"cont").unwrap();
    folder.put(&one, b"content").unwrap();
    assert_eq!(folder.get(&one).unwrap().unwrap(), b"content");
}

#[test]
fn a_backup_keeps_everything_where_it_is() {
    let (_place, folder) = Temporary::new();
    folder.put(&address(b"x"), b"x").unwrap();
    let backup = File::open(folder.path.join(PAUSE)).unwrap();
    backup.try_lock_shared().unwrap();
    assert_eq!(search(&folder, Duration::ZERO, &HashSet::new()), 0);
    drop(backup);
    assert_eq!(search(&folder, Duration::ZERO, &HashSet::new()), 1);
}

#[test]
fn files_are_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (_place, folder) = Temporary::new();
    folder.put(&address(b"x"), b"x").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder.path), mode(&folder.file(&address(b"x")))), (0o700, 0o600));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Commit,
    Forget(u8),
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![(0u8..6).prop_map(Step::Put), Just(Step::Commit), (0u8..6).prop_map(Step::Forget), Just(Step::Look)];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// In the order of the writer: looks are between transactions, never between a put and its commit. Without any age to protect them,
    /// whatever a row names is there.
    #[test]
    fn no_order_of_writes_and_looks_loses_what_a_row_names(steps in steps()) {
        let (_place, folder) = Temporary::new();
        let (mut named, mut pending) = (HashSet::new(), Vec::new());
        let mut under_way: Option<Search> = None;
        for step in steps {
            match step {
                Step::Put(n) => {
                    folder.put(&address(&[n]), &[n]).unwrap();
                    pending.push(address(&[n]));
                }
                Step::Commit => named.extend(pending.drain(..)),
                Step::Forget(n) => drop(named.remove(&address(&[n]))),
                Step::Look => {
                    named.extend(pending.drain(..));
                    let mut search = under_way.take().unwrap_or_else(|| folder.search().unwrap());
                    if folder.look(&mut search, Duration::ZERO, &mut |a| Ok(named.contains(a))).unwrap() {
                        under_way = Some(search);
                    }
                }
            }
            for address in &named {
                prop_assert!(folder.get(address).unwrap().is_some());
            }
        }
    }
}
