//! Terminals: over a console socket, and joined to our own.

use crate::rig::{Rig, background, until};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

fn terminal(rig: &Rig) {
    rig.configure(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"width": 91, "height": 37});
    });
}

/// What runc's own users do: one message with a name and a descriptor.
fn receive(listener: &UnixListener) -> OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0u8; 64];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut vectors = [std::io::IoSliceMut::new(&mut name)];
    recvmsg(&stream, &mut vectors, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let found = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    found.expect("a descriptor")
}

/// Everything a terminal says until its last process is gone.
fn read_all(master: OwnedFd) -> String {
    let mut file = File::from(master);
    let (mut text, mut buffer) = (String::new(), [0; 1024]);
    while let Ok(count @ 1..) = file.read(&mut buffer) {
        text += &String::from_utf8_lossy(&buffer[..count]);
    }
    text
}

#[test]
fn the_master_goes_to_the_console_socket() {
    let rig = Rig::new(&["sh", "-c", "tty; stty size; read line; echo got $line"]);
    terminal(&rig);
    let listener = UnixListener::bind(rig.path("console.sock")).unwrap();
    rig.ok(&["create", "--console-socket", "console.sock", "c"]);
    let mut master = File::from(receive(&listener));
    rig.ok(&["start", "c"]);
    master.write_all(b"words\n").unwrap();
    let text = read_all(master.into());
    assert!(text.contains("/dev/pts/0") && text.contains("37 91") && text.contains("got words"), "{text:?}");
    rig.await_status("c", "stopped");
    rig.ok(&["delete", "c"]);
    rig.finish();
}

#[test]
fn exec_with_a_terminal() {
    let rig = Rig::new(&["sleep", "1000"]);
    rig.ok(&["run", "-d", "c"]);
    let listener = UnixListener::bind(rig.path("console.sock")).unwrap();
    rig.ok(&["exec", "--tty", "--detach", "--console-socket", "console.sock", "c", "tty"]);
    assert!(read_all(receive(&listener)).contains("/dev/pts/"));
    // In the foreground its output comes through us.
    assert!(rig.ok(&["exec", "--tty", "c", "tty"]).contains("/dev/pts/"));
    rig.ok(&["delete", "-f", "c"]);
    rig.finish();
}

#[test]
fn contradictions_about_terminals_are_refused() {
    let rig = Rig::new(&["true"]);
    assert!(rig.fails(1, &["create", "--console-socket", "x", "c"]).contains("console socket"));
    terminal(&rig);
    assert!(rig.fails(1, &["create", "c"]).contains("console socket"));
    assert!(rig.fails(1, &["run", "-d", "c"]).contains("console socket"));
    // A socket that nobody listens on undoes the creation.
    assert!(rig.fails(1, &["create", "--console-socket", "nobody.sock", "c"]).contains("nobody.sock"));
    rig.finish();
}

#[test]
fn run_in_the_foreground_joins_the_terminal_to_ours() {
    let rig = Rig::new(&["sh", "-c", "tty; stty size; exit 5"]);
    terminal(&rig);
    let output = rig.run(&["run", "c"]);
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("/dev/pts/0"), "{text:?}");
    // Killing us does not end the container; the next deletion does.
    rig.configure(|config| config["process"]["args"] = json!(["sleep", "1000"]));
    let mut child = background(&mut rig.command(&["run", "c"]));
    until("it runs", || !rig.ok(&["list", "-q"]).is_empty() && rig.status("c") == "running");
    child.kill().unwrap();
    child.wait().unwrap();
    rig.ok(&["delete", "-f", "c"]);
    rig.finish();
}
