//! Tars, honest and hostile, unpacked on the real file system.

#[allow(unreachable_pub, reason = "shared with the integration tests")]
#[path = "../../tests/support/tar.rs"]
mod tar;

use super::attributes::OPAQUE;
use super::settle::{Stack, settle};
use super::{Form, Limits, Tree, unpack};
use crate::{Kind, Result};
use rustix::fs::Mode;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tar::{Head, MTIME, Tar};
use tempfile::TempDir;

fn scratch() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

struct Layer {
    _dir: TempDir,
    path: PathBuf,
    tree: Tree,
}

fn try_unpack(tar: &[u8], limits: Limits) -> (TempDir, Result<Tree>) {
    let dir = scratch();
    let path = dir.path().join("layer");
    std::fs::create_dir(&path).unwrap();
    let tree = unpack(tar, &path, limits, Form::Layer);
    (dir, tree)
}

fn layer(tar: Tar) -> Layer {
    let (dir, tree) = try_unpack(&tar.end(), Limits::default());
    Layer { path: dir.path().join("layer"), tree: tree.unwrap(), _dir: dir }
}

/// Stacks bottom first, settling each over those below.
fn settled(tars: Vec<Tar>) -> Vec<Layer> {
    let mut done: Vec<Layer> = Vec::new();
    for tar in tars {
        let mut top = layer(tar);
        let below = Stack { layers: done.iter().rev().map(|layer| layer.tree.root()).collect() };
        settle(&mut top.tree, &below).unwrap();
        done.push(top);
    }
    done
}

fn stat(path: &Path) -> std::fs::Metadata {
    std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn mode(path: &Path) -> u32 {
    stat(path).permissions().mode() & 0o7777
}

fn is_opaque(path: &Path) -> bool {
    super::tree::is_opaque(std::fs::File::open(path).unwrap())
}

fn is_whiteout(path: &Path) -> bool {
    let stat = stat(path);
    stat.file_type().is_char_device() && stat.rdev() == 0
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    rustix::fs::lgetxattr(path, name, &mut value).ok().map(|length| value[..length].to_vec())
}

// IMG-UNP-13, -14, -15, -16, -21, -22
#[test]
fn every_kind_with_its_attributes() {
    // Of this thread alone: other tests run beside.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let long = format!("d/{}", "n".repeat(200));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let made = layer(
        Tar::new()
            .dir("./", 0o711, 3)
            .dir("d/", 0o2775, 7)
            .file_as("d/setuid", "x", 0o6755, 9)
            .pax("SCHILY.xattr.security.capability", capability)
            .pax("mtime", "1234567890.5")
            .file_as("d/ping", "ping", 0o755, 5)
            .symlink("d/dangling", "/no/where")
            .link("d/hard", "d/ping")
            .device(b'3', "d/null", (1, 3))
            .device(b'4', "d/loop", (7, 0))
            .device(b'6', "d/fifo", (0, 0))
            .pax("path", &long)
            .pax("uid", "70000")
            .file("short", "long")
            .entry(Head::new(b'g', "global"), &[])
            .entry(Head { size: 2, ..Head::new(0, "old") }, b"ok")
            .entry(Head { size: 2, ..Head::new(b'7', "contiguous") }, b"ok"),
    );
    let at = |name: &str| made.path.join(name);
    assert_eq!((mode(&at("")), stat(&at("")).uid()), (0o711, 3));
    assert_eq!((mode(&at("d")), stat(&at("d")).gid(), stat(&at("d")).mtime()), (0o2775, 7, MTIME as i64));
    assert_eq!((mode(&at("d/setuid")), stat(&at("d/setuid")).uid()), (0o6755, 9));
    assert_eq!(xattr(&at("d/ping"), "security.capability").unwrap(), capability);
    assert_eq!((stat(&at("d/ping")).mtime(), stat(&at("d/ping")).mtime_nsec()), (1_234_567_890, 500_000_000));
    assert_eq!(std::fs::read_link(at("d/dangling")).unwrap(), Path::new("/no/where"));
    assert_eq!(stat(&at("d/hard")).ino(), stat(&at("d/ping")).ino());
    assert_eq!(stat(&at("d/null")).rdev(), rustix::fs::makedev(1, 3));
    assert!(stat(&at("d/loop")).file_type().is_block_device());
    assert!(stat(&at("d/fifo")).file_type().is_fifo());
    assert_eq!(mode(&at("d/fifo")), 0o666);
    assert_eq!((stat(&at(&long)).uid(), std::fs::read(at(&long)).unwrap()), (70000, b"long".to_vec()));
    assert_eq!(std::fs::read(at("old")).unwrap(), b"ok");
    assert_eq!(std::fs::read(at("contiguous")).unwrap(), b"ok");
    assert!(made.tree.pending.is_empty());
}

// IMG-UNP-21
#[test]
fn sparse_files() {
    let content = [b"head".as_slice(), b"tail"].concat();
    let made = layer(
        Tar::new()
            .pax("GNU.sparse.map", "0,4,1000000,4")
            .pax("GNU.sparse.size", "2000000")
            .pax("GNU.sparse.name", "big")
            .file("GNUSparseFile.0/big", &content),
    );
    let data = std::fs::read(made.path.join("big")).unwrap();
    assert_eq!(
        (data.len(), &data[..4], &data[1_000_000..1_000_004]),
        (2_000_000, &b"head"[..], &b"tail"[..])
    );
    assert!(stat(&made.path.join("big")).blocks() < 100);
    for map in ["0,4,2,4", "0,4,1999998,4", "0,4", "0,8,1000000,8"] {
        let tar = Tar::new().pax("GNU.sparse.map", map).pax("GNU.sparse.size", "2000000").file("f", &content);
        assert!(try_unpack(&tar.end(), Limits::default()).1.is_err(), "{map}");
    }
}

// IMG-WH-01, -03, -04, -06, -07, -08
#[test]
fn whiteouts_in_overlay_form() {
    let made = layer(
        Tar::new()
            .dir("d/", 0o755, 0)
            .file("d/.wh.gone", "")
            .file("d/mine", "new")
            .file("d/.wh.mine", "")
            .file("d/.wh..wh.aufs", "")
            .dir("o/", 0o755, 0)
            .file("o/kept", "")
            .file("o/.wh..wh..opq", "")
            .file("missing/parent/.wh.x", "")
            .file(".wh.again", "")
            .dir("again/", 0o700, 0)
            .dir("later/", 0o700, 0)
            .file(".wh.later", ""),
    );
    let at = |name: &str| made.path.join(name);
    assert!(is_whiteout(&at("d/gone")) && is_whiteout(&at("missing/parent/x")));
    assert_eq!(std::fs::read(at("d/mine")).unwrap(), b"new");
    assert_eq!(std::fs::read_dir(at("d")).unwrap().count(), 2);
    assert!(is_opaque(&at("o")) && at("o/kept").exists() && !is_opaque(&at("d")));
    // Deleted below and new here: nothing of the old shows, whatever the order.
    assert!(is_opaque(&at("again")) && is_opaque(&at("later")));
    assert_eq!(made.tree.pending.implicit.len(), 2);
}

// IMG-WH-02
#[test]
fn odd_whiteouts_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..", "d/.wh."] {
        let result = try_unpack(&Tar::new().dir("d/", 0o755, 0).file(name, "").end(), Limits::default()).1;
        assert_eq!(result.err().map(|e| e.kind), Some(Kind::Corrupt), "{name}");
    }
}

/// A directory beside the layer that no archive may reach, with a file to be tempted by.
fn bait(dir: &Path) -> PathBuf {
    let outside = dir.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "untouched").unwrap();
    std::fs::set_permissions(outside.join("file"), std::fs::Permissions::from_mode(0o600)).unwrap();
    outside
}

// IMG-UNP-03, -04, -05, -10, -11, -12
#[test]
fn nothing_escapes() {
    type Attack = fn(&str) -> Tar;
    let attacks: &[(&str, Attack)] = &[
        ("dot-dot", |_| Tar::new().file("../outside/file", "pwned")),
        ("absolute", |out| Tar::new().file(&format!("{out}/file"), "pwned")),
        ("symlink, absolute", |out| Tar::new().symlink("l", out).file("l/file", "pwned")),
        ("symlink, relative", |_| Tar::new().symlink("l", "../../../../../outside").file("l/file", "pwned")),
        ("symlink, last component", |out| Tar::new().symlink("l", &format!("{out}/file")).file("l", "pwned")),
        ("symlink, then directory", |out| {
            Tar::new().symlink("l", out).dir("l/", 0o777, 99).file("l/file", "pwned")
        }),
        ("symlink chain", |out| Tar::new().symlink("a", "b").symlink("b", out).file("a/file", "pwned")),
        ("directory replaced", |out| {
            Tar::new().dir("d/", 0o755, 0).file("d/x", "").symlink("d", out).file("d/file", "pwned")
        }),
        ("hard link out", |out| Tar::new().link("l", &format!("{out}/file")).file("l", "pwned")),
        ("hard link dot-dot", |_| Tar::new().link("l", "../outside/file").file("l", "pwned")),
        ("hard link through symlink", |out| {
            Tar::new()
                .symlink("s", out)
                .link("l", "s/file")
                .entry(Head { size: 5, ..Head::new(b'0', "l") }, b"pwned")
        }),
        ("hard link to symlink", |out| {
            Tar::new()
                .symlink("s", &format!("{out}/file"))
                .link("l", "s")
                .file("l", "pwned")
                .dir("s/", 0o777, 9)
        }),
        ("magic link", |_| Tar::new().symlink("p", "/proc/self/root").file("p/outside/file", "pwned")),
        ("whiteout through symlink", |out| Tar::new().symlink("l", out).file("l/.wh.file", "")),
        ("opaque through symlink", |out| Tar::new().symlink("l", out).file("l/.wh..wh..opq", "")),
        ("device through symlink", |out| Tar::new().symlink("l", out).device(b'3', "l/file", (1, 3))),
    ];
    for (what, attack) in attacks {
        let dir = scratch();
        let outside = bait(dir.path());
        let path = dir.path().join("layer");
        std::fs::create_dir(&path).unwrap();
        let tar = attack(outside.to_str().unwrap()).end();
        if let Ok(mut tree) = unpack(&tar[..], &path, Limits::default(), Form::Layer) {
            let _ = settle(&mut tree, &Stack { layers: Vec::new() });
        }
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"untouched", "{what}");
        assert_eq!((mode(&outside.join("file")), stat(&outside.join("file")).nlink()), (0o600, 1), "{what}");
        assert_eq!((mode(&outside), stat(&outside).uid()), (0o755, 0), "{what}");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "{what}");
        assert!(xattr(&outside, OPAQUE).is_none(), "{what}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "{what}");
    }
}

// IMG-UNP-04: as in a chroot.
#[test]
fn symlinked_parents_lead_inside() {
    let made = layer(
        Tar::new()
            .dir("etc/", 0o750, 0)
            .symlink("l", "/etc")
            .file("l/passwd", "x")
            .symlink("m", "/made/../new/./dir")
            .file("m/f", "y"),
    );
    assert_eq!(std::fs::read(made.path.join("etc/passwd")).unwrap(), b"x");
    assert_eq!(std::fs::read(made.path.join("new/dir/f")).unwrap(), b"y");
    let loops = Tar::new().symlink("a", "b").symlink("b", "a").file("a/f", "");
    assert!(try_unpack(&loops.end(), Limits::default()).1.is_err());
}

// IMG-UNP-11, -13, -18, -23
#[test]
fn refused() {
    let many = (0..50).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), ""));
    let deep = format!("{}f", "d/".repeat(40));
    let truncated =
        Tar::new().file("a", "x").entry(Head { size: 4096, ..Head::new(b'0', "b") }, b"short").cut();
    let half_header = Tar::new().file("a", "x").raw(&[b'x'; 100]).cut();
    let limits = Limits { entries: 20, stream: 1 << 20, files: 1 << 16, depth: 32 };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("entries", many.end()),
        ("depth", Tar::new().pax("path", deep).file("x", "").end()),
        ("file bytes", Tar::new().file("a", vec![0; 40_000]).file("b", vec![0; 40_000]).end()),
        (
            "stream bytes",
            Tar::new().entry(Head { size: 40_000, ..Head::new(b'0', "a") }, &vec![0; 2 << 20]).end(),
        ),
        ("PAX header of 2 MiB", Tar::new().pax("comment", vec![b'x'; 2 << 20]).file("a", "").end()),
        (
            "sparse bomb",
            Tar::new().pax("GNU.sparse.map", "0,1").pax("GNU.sparse.size", "999999999").file("a", "x").end(),
        ),
        ("hard link to nothing", Tar::new().link("l", "nothing").end()),
        ("hard link to a directory", Tar::new().dir("d/", 0o755, 0).link("l", "d").end()),
        ("hard link to the root", Tar::new().link("l", "/").end()),
        ("root as a file", Tar::new().symlink("./", "/etc").end()),
        ("forged whiteout", Tar::new().device(b'3', "x", (0, 0)).end()),
        ("unknown type", Tar::new().entry(Head::new(b'Z', "x"), &[]).end()),
        ("parent is a file", Tar::new().file("a", "").file("a/b", "").end()),
        ("uid -1", Tar::new().pax("uid", "4294967295").file("a", "").end()),
        ("uid is no number", Tar::new().pax("uid", "x").file("a", "").end()),
        ("truncated content", truncated),
        ("truncated header", half_header),
        (
            "bad checksum",
            Tar::new()
                .file("a", "")
                .end()
                .iter()
                .enumerate()
                .map(|(i, b)| if i == 0 { b'z' } else { *b })
                .collect(),
        ),
        ("garbage", vec![0x5a; 4096]),
    ];
    for (what, tar) in cases {
        let (_dir, result) = try_unpack(&tar, limits.clone());
        let result = result.and_then(|mut tree| settle(&mut tree, &Stack { layers: Vec::new() }));
        assert!(result.is_err(), "{what}");
    }
    // Ends without a marker, or with a lone zero block, are common.
    assert!(try_unpack(&Tar::new().file("a", "x").cut(), Limits::default()).1.is_ok());
    assert!(try_unpack(&Tar::new().file("a", "x").raw(&[0; 512]).cut(), Limits::default()).1.is_ok());
    assert!(try_unpack(&[], Limits::default()).1.is_ok());
}

// IMG-UNP-17, -18
#[test]
fn overlay_marks_are_not_taken_from_archives() {
    let made = layer(
        Tar::new()
            .pax("SCHILY.xattr.trusted.overlay.opaque", "y")
            .pax("SCHILY.xattr.user.overlay.opaque", "y")
            .pax("SCHILY.xattr.trusted.other", "z")
            .dir("d/", 0o755, 0)
            .pax("SCHILY.xattr.trusted.overlay.redirect", "/etc")
            .pax("SCHILY.xattr.user.kept", "k")
            .file("f", "")
            .pax("SCHILY.xattr.user.kept", "k")
            .symlink("l", "f"),
    );
    let (d, f) = (made.path.join("d"), made.path.join("f"));
    assert_eq!(xattr(&d, OPAQUE), None);
    assert_eq!(xattr(&d, "user.overlay.opaque"), None);
    assert_eq!(xattr(&d, "trusted.other").unwrap(), b"z");
    assert_eq!(xattr(&f, "trusted.overlay.redirect"), None);
    assert_eq!(xattr(&f, "user.kept").unwrap(), b"k");
}

// IMG-UNP-08, -09
#[test]
fn later_entries_win() {
    let made = layer(
        Tar::new()
            .dir("d/", 0o700, 1)
            .file("d/child", "kept")
            .dir("d/", 0o755, 2)
            .dir("t/", 0o755, 0)
            .file("t/deep", "")
            .file("t", "now a file")
            .file("f", "was a file")
            .dir("f/", 0o755, 0)
            .file("r", "first")
            .link("h", "r")
            .file("r", "second")
            .link("r", "r"),
    );
    let at = |name: &str| made.path.join(name);
    assert_eq!(
        (mode(&at("d")), stat(&at("d")).uid(), std::fs::read(at("d/child")).unwrap()),
        (0o755, 2, b"kept".to_vec())
    );
    assert_eq!(std::fs::read(at("t")).unwrap(), b"now a file");
    assert!(at("f").is_dir() && is_opaque(&at("f")));
    assert_eq!(
        (std::fs::read(at("r")).unwrap(), std::fs::read(at("h")).unwrap()),
        (b"second".to_vec(), b"first".to_vec())
    );
}

// IMG-UNP-07
#[test]
fn implicit_parents_take_what_lies_below() {
    let stack = settled(vec![
        Tar::new()
            .dir("a/", 0o2751, 42)
            .pax("SCHILY.xattr.user.tag", "t")
            .dir("a/b/", 0o1777, 43)
            .dir("w/", 0o700, 44)
            .dir("x/", 0o700, 45)
            .file("notdir", ""),
        Tar::new()
            .file("a/b/c/new", "1")
            .file(".wh.w", "")
            .file("w/new", "2")
            .file("notdir/new", "3")
            .file("late/f", "4")
            .dir("late/", 0o710, 9),
        Tar::new().file("a/b/top", "5"),
    ]);
    for layer in &stack[1..] {
        let at = |name: &str| layer.path.join(name);
        assert_eq!(
            (mode(&at("a")), stat(&at("a")).uid(), stat(&at("a")).mtime()),
            (0o2751, 42, MTIME as i64)
        );
        assert_eq!((mode(&at("a/b")), stat(&at("a/b")).gid()), (0o1777, 43));
        assert_eq!(xattr(&at("a/b"), "user.tag").unwrap(), b"t");
    }
    let at = |name: &str| stack[1].path.join(name);
    assert_eq!((mode(&at("a/b/c")), stat(&at("a/b/c")).uid()), (0o755, 0));
    // Deleted and made anew: not the old one's attributes, and nothing of it shows.
    assert_eq!((mode(&at("w")), stat(&at("w")).uid(), is_opaque(&at("w"))), (0o755, 0, true));
    assert_eq!(mode(&at("notdir")), 0o755);
    assert_eq!((mode(&at("late")), stat(&at("late")).uid()), (0o710, 9));
}

// IMG-UNP-10, -11
#[test]
fn hard_links_to_lower_files() {
    let stack = settled(vec![
        Tar::new()
            .dir("bin/", 0o711, 8)
            .file_as("bin/tool", "tool", 0o4755, 7)
            .symlink("bin/sl", "/nowhere")
            .symlink("lib", "bin")
            .file("gone", "old"),
        Tar::new()
            .link("usr/bin/tool2", "bin/tool")
            .link("third", "usr/bin/tool2")
            .link("via", "lib/tool")
            .link("sl2", "bin/sl"),
    ]);
    let at = |name: &str| stack[1].path.join(name);
    let tool = stat(&at("bin/tool"));
    assert_eq!((tool.nlink(), tool.uid(), mode(&at("bin/tool")), tool.mtime()), (4, 7, 0o4755, MTIME as i64));
    assert_eq!(std::fs::read(at("bin/tool")).unwrap(), b"tool");
    for name in ["usr/bin/tool2", "third", "via"] {
        assert_eq!(stat(&at(name)).ino(), tool.ino(), "{name}");
    }
    assert_eq!((mode(&at("bin")), stat(&at("bin")).uid()), (0o711, 8));
    assert_eq!(std::fs::read_link(at("sl2")).unwrap(), Path::new("/nowhere"));
    // The copy's origin is left alone.
    assert_eq!(stat(&stack[0].path.join("bin/tool")).nlink(), 1);

    let mut over = layer(Tar::new().file(".wh.gone", "").link("l", "gone"));
    let below = Stack { layers: vec![stack[0].tree.root()] };
    assert_eq!(settle(&mut over.tree, &below).unwrap_err().kind, Kind::Corrupt);
}

// IMG-UNP-04 over layers: /lib -> usr/lib below, and a layer with lib/x but no entry for lib.
#[test]
fn what_lies_in_a_lower_symlink_moves_to_its_target() {
    let stack = settled(vec![
        Tar::new()
            .dir("usr/", 0o755, 0)
            .dir("usr/lib/", 0o711, 6)
            .file("usr/lib/old", "")
            .symlink("lib", "usr/lib"),
        Tar::new()
            .file("lib/x", "from lib")
            .file("lib/sub/y", "deep")
            .file("usr/lib/z", "direct")
            .link("lib/linked", "usr/lib/old")
            .file("lib/.wh.old2", ""),
    ]);
    let at = |name: &str| stack[1].path.join(name);
    assert!(std::fs::symlink_metadata(at("lib")).is_err(), "the symlink below must show through");
    assert_eq!(std::fs::read(at("usr/lib/x")).unwrap(), b"from lib");
    assert_eq!(std::fs::read(at("usr/lib/sub/y")).unwrap(), b"deep");
    assert_eq!(std::fs::read(at("usr/lib/z")).unwrap(), b"direct");
    assert!(is_whiteout(&at("usr/lib/old2")));
    assert_eq!(stat(&at("usr/lib/linked")).ino(), stat(&at("usr/lib/old")).ino());
    assert_eq!((mode(&at("usr/lib")), stat(&at("usr/lib")).uid()), (0o711, 6));
}

/// Where both have the same directories, however deep: no more stack or descriptors than for a flat one.
#[test]
fn a_deep_tree_in_a_lower_symlink_moves_to_its_target() {
    let depth = 250;
    let below = "d/".repeat(depth);
    let both = |tar: Tar, top: &str, name: &str| {
        let tar = tar.pax("path", format!("{top}/{below}{name}")).file("x", "deep");
        tar.pax("path", format!("{top}/d/{name}")).file("x", "flat")
    };
    let below_it = Tar::new().dir("usr/", 0o755, 0).dir("usr/lib/", 0o755, 0).symlink("lib", "usr/lib");
    let above = both(both(Tar::new(), "usr/lib", "there"), "lib", "moved");
    let work = move || {
        let stack = settled(vec![below_it, above]);
        let mut file = stack[1].path.join("usr/lib");
        (0..depth).for_each(|_| file.push("d"));
        for name in ["moved", "there"] {
            assert_eq!(std::fs::read(file.join(name)).unwrap(), b"deep", "{name}");
            assert_eq!(std::fs::read(stack[1].path.join("usr/lib/d").join(name)).unwrap(), b"flat", "{name}");
        }
        assert!(std::fs::symlink_metadata(stack[1].path.join("lib")).is_err());
    };
    // Recursion at this depth would need several times as much.
    std::thread::Builder::new().stack_size(512 << 10).spawn(work).unwrap().join().unwrap();
}

/// Bytes at random places changed or cut: never a panic, never outside.
#[test]
fn damaged_archives() {
    let good = Tar::new()
        .dir("d/", 0o755, 0)
        .pax("SCHILY.xattr.user.a", "b")
        .pax("mtime", "1.5")
        .file("d/f", vec![7; 3000])
        .symlink("d/l", "f")
        .link("d/h", "d/f")
        .file("d/.wh.x", "")
        .end();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap()
    };
    let limits = Limits { entries: 100, stream: 1 << 20, files: 1 << 20, depth: 32 };
    for _ in 0..400 {
        let mut bad = good.clone();
        for _ in 0..=random() % 3 {
            // A fixed checksum lets damage reach the fields behind it.
            let block = (random() % (bad.len() / 512)) * 512;
            bad[block + random() % 345] = u8::try_from(random() % 256).unwrap();
            let sum: u32 =
                (0..512).map(|i| if (148..156).contains(&i) { 32 } else { u32::from(bad[block + i]) }).sum();
            bad[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        if random() % 4 == 0 {
            bad.truncate(random() % bad.len());
        }
        let dir = scratch();
        let path = dir.path().join("layer");
        std::fs::create_dir(&path).unwrap();
        if let Ok(mut tree) = unpack(&bad[..], &path, limits.clone(), Form::Layer) {
            let _ = settle(&mut tree, &Stack { layers: Vec::new() });
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

/// Entries behind symlinks lie deeper than any name may be; what replaces the top removes them all, on a small stack.
#[test]
fn a_tree_deeper_than_its_names_is_replaced() {
    let mut tar = Tar::new().dir("d/", 0o755, 0);
    let mut top = "d".to_owned();
    for _ in 0..20 {
        let mut name = top.clone();
        for _ in 0..80 {
            name += "/d";
            tar = tar.pax("path", format!("{name}/")).dir("d/", 0o755, 0);
        }
        tar = tar.pax("path", format!("{top}/s")).pax("linkpath", ["d"; 80].join("/")).symlink("s", "d");
        top += "/s";
    }
    let tar = tar.file(&format!("{top}/bottom"), "x").file("d", "now a file");
    let small = std::thread::Builder::new().stack_size(256 << 10);
    let replaced = small.spawn(|| std::fs::read_to_string(layer(tar).path.join("d")).unwrap()).unwrap();
    assert_eq!(replaced.join().unwrap(), "now a file");
}
