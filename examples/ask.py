# One prompt to claude-api, asked again with the same key where the line breaks, so that it is never a second turn.
import http.client, json, os, sys, time, urllib.request, uuid

def ask(prompt, user_id, session_id=None):
    url = os.environ.get("CLAUDE_API_URL", "http://127.0.0.1:8001") + "/api/v1/chat"
    body = json.dumps({"prompt": prompt, "user_id": user_id, "session_id": session_id}).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["CLAUDE_API_KEY"], "Idempotency-Key": str(uuid.uuid4())}
    for wait_seconds in (1, 2, 4, 8, 16, 0):
        try:
            return json.load(urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=400))
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "code", 500) < 500 or wait_seconds == 0:
                raise SystemExit(error.read().decode() if hasattr(error, "read") else error)
        time.sleep(wait_seconds)

print(ask(sys.argv[1], 1)["content"])
