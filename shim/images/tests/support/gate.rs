//! A gate before a registry: asks for authorisation in several ways, and remembers what it was told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// `Basic me:secret`.
    Basic,
    /// Tokens for anybody.
    Anonymous,
    /// Tokens by GET with Basic only: POST is answered 405.
    Get,
    /// Tokens by OAuth POST: password or refresh token.
    Post,
    /// 503 for everything.
    Down,
    /// Asks nobody for anything; 503 for tags of signatures.
    NoSignatures,
    /// Asks nobody for anything; tags of signatures lead to themselves.
    Circle,
}

pub struct Gate {
    pub address: SocketAddr,
    /// Heads of all requests (and bodies of those for tokens).
    pub heard: Arc<Mutex<Vec<String>>>,
}

impl Gate {
    pub fn start(target: SocketAddr, way: Way) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = heard.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let log = log.clone();
                std::thread::spawn(move || serve(client, address, target, way, &log));
            }
        });
        Self { address, heard }
    }

    pub fn count(&self, text: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|head| head.contains(text)).count()
    }
}

fn read_request(client: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).ok()?;
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8_lossy(&body))
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let find = |line: &'a str| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    };
    head.lines().find_map(find).unwrap_or_default()
}

/// `me:secret`
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn serve(mut client: TcpStream, own: SocketAddr, target: SocketAddr, way: Way, log: &Mutex<Vec<String>>) {
    let Some(head) = read_request(&mut client) else { return };
    log.lock().unwrap().push(head.clone());
    let mut answer = |status: &str, headers: &str, body: &str| {
        let text = format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let _ = client.write_all(text.as_bytes());
    };
    let authorisation = header(&head, "authorization");
    if way == Way::Down {
        return answer("503 Service Unavailable", "", "");
    }
    let path = head.split(' ').nth(1).unwrap_or_default();
    let is_open = matches!(way, Way::NoSignatures | Way::Circle);
    if is_open && path.contains(".sig") {
        return match way {
            Way::Circle => answer("307 Temporary Redirect", &format!("location: {path}\r\n"), ""),
            _ => answer("503 Service Unavailable", "", ""),
        };
    }
    if path.starts_with("/token") {
        let ok = match way {
            Way::Anonymous => head.starts_with("GET") && authorisation.is_empty(),
            Way::Get if head.starts_with("POST") => return answer("405 Method Not Allowed", "", ""),
            Way::Get => authorisation == BASIC && head.contains("scope=repository%3Aa%3Apull"),
            _ => {
                head.contains("grant_type=password&") && head.contains("&username=me&password=secret")
                    || head.contains("grant_type=refresh_token&") && head.contains("&refresh_token=idt")
            }
        };
        let body = if way == Way::Post { r#"{"access_token":"good"}"# } else { r#"{"token":"good"}"# };
        return if ok {
            answer("200 OK", "", body)
        } else {
            answer("401 Unauthorized", "", r#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#)
        };
    }
    let wanted = if way == Way::Basic { BASIC } else { "Bearer good" };
    if authorisation != wanted && !is_open {
        let challenge = match way {
            Way::Basic => "Basic realm=\"x\"".to_owned(),
            _ => format!(
                "Basic realm=\"y\", Bearer realm=\"http://{own}/token\",service=\"s\",scope=\"repository:a:pull\""
            ),
        };
        return answer("401 Unauthorized", &format!("www-authenticate: {challenge}\r\n"), "{}");
    }
    let Ok(mut server) = TcpStream::connect(target) else { return };
    let forwarded: Vec<&str> =
        head.split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("connection:")).collect();
    let forwarded = forwarded.join("\r\n").replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let _ = server.write_all(forwarded.as_bytes());
    let _ = std::io::copy(&mut server, &mut client);
}
