//! The Business Rule that we ship, run by a JavaScript engine with stand-ins of ServiceNow's objects.
//!
//! Guarantees: the engine runs the shipped file; `business_rule.js` beside this file has the stand-ins and the switches for
//! what is not known of ServiceNow.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use rquickjs::{Context, Function, Runtime};
use serde_json::{Map, Value, json};
use sha2::Sha256;

/// The file that `causeway servicenow install` installs.
pub(crate) const RULE: &str = include_str!("../../../deploy/servicenow/live_message.js");
/// `ingress.servicenow.hmac_secret`.
pub(crate) const SECRET: &str = "signing secret of the tests";
/// A moment at which nothing of these tests depends on the clock of the machine.
const SOME_TIME: i64 = 1_795_341_602_000;

const STAND_INS: &str = include_str!("business_rule.js");

/// The settings of an instance that works.
pub(crate) fn settings() -> Map<String, Value> {
    let settings = json!({
        "type": "support", "status": 202, "key": STANDARD.encode(SECRET), "breaks": "", "history": [],
        "name": "acme", "now": SOME_TIME, "release": "new", "substitutes": false, "redirects": false, "early": false,
    });
    settings.as_object().expect("an object").clone()
}

/// `GlideCertificateEncryption.generateMac`: the key is Base64, and so is the answer.
pub(crate) fn mac(key: String, algorithm: String, data: String) -> String {
    assert_eq!(algorithm, "HmacSHA256");
    assert!(data.is_ascii(), "what is signed may depend on no character set");
    let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(key).expect("Base64")).expect("a key");
    mac.update(data.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// An instance with the rule installed.
pub(crate) struct Instance {
    context: Context,
    _runtime: Runtime,
}

impl Instance {
    pub(crate) fn new(settings: &Map<String, Value>) -> Self {
        Self::with_script(RULE, settings)
    }

    /// With another script than the one that we ship.
    pub(crate) fn with_script(script: &str, settings: &Map<String, Value>) -> Self {
        let runtime = Runtime::new().expect("an engine");
        let context = Context::full(&runtime).expect("a context");
        context.with(|js| {
            let globals = js.globals();
            globals.set("instanceText", Value::Object(settings.clone()).to_string()).expect("a global");
            globals.set("ruleText", script).expect("a global");
            globals.set("mac", Function::new(js.clone(), mac).expect("a function")).expect("a global");
            js.eval::<(), _>(STAND_INS).expect("the stand-ins");
        });
        Self { context, _runtime: runtime }
    }

    /// Sends requests to a real server: `post` gets a request (`headers`, `body`) and returns the status, 0 without an answer.
    pub(crate) fn network(&self, post: impl Fn(Value) -> i32 + 'static) {
        self.context.with(|js| {
            let post = move |request: String| post(serde_json::from_str(&request).expect("a request"));
            let post = Function::new(js.clone(), post).expect("a function");
            js.globals().set("network", post).expect("a global");
        });
    }

    /// Runs `script` and returns the value of `result`, if the script sets it.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.context.with(|js| {
            let script = format!("var result = null;\n{script}\nJSON.stringify(result)");
            let done = js.eval::<String, _>(script);
            let done = done.unwrap_or_else(|error| panic!("{error}: {:?}", js.catch()));
            serde_json::from_str(&done).expect("a result")
        })
    }
}
