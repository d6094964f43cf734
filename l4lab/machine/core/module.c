/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The native core as Python sees it: one type, `Core`. What its methods mean is said in engine.py.
 */
#include "core.h"

enum { YIELD_MS = 5 };
typedef void (*invalidate_fn)(void *, uint64_t, uint64_t);
typedef void (*flush_page_fn)(void *, uint64_t);

/* Freeing. An engine takes a gigabyte of address space, so it is freed when somebody says so. But views on the CPU state
 * lead into the engine: while there is one, the engine stays, though nobody can run it any more. */
static bool is_open(Core *c)
{
    if (c->closed)
        PyErr_SetString(PyExc_RuntimeError, "this engine was closed");
    return !c->closed;
}

static void unlink_core(Core *c)
{
    for (Core **p = &cores; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
}

static void free_unless_seen(Core *c)
{
    if (c->closed && !c->views)
        Py_CLEAR(c->owner);
}

static PyObject *core_close(Core *c, PyObject *unused)
{
    c->closed = true;
    unlink_core(c);
    free_unless_seen(c);
    Py_RETURN_NONE;
}

static int core_get_buffer(Core *c, Py_buffer *view, int flags)
{
    if (!is_open(c)) {
        view->obj = NULL;
        return -1;
    }
    if (PyBuffer_FillInfo(view, (PyObject *)c, c->env, (Py_ssize_t)c->off[ENV_SIZE], 0, flags) < 0)
        return -1;
    c->views++;
    return 0;
}

static void core_release_buffer(Core *c, Py_buffer *view)
{
    c->views--;
    free_unless_seen(c);
}

static PyObject *core_run(Core *c, PyObject *args)
{
    Py_ssize_t frame_at;
    long long deadline;
    if (!PyArg_ParseTuple(args, "nL", &frame_at, &deadline))
        return NULL;
    int64_t now = host_ms();
    if (now >= c->yield_at) {                                   /* compiled callers never let other threads run */
        PyEval_RestoreThread(PyEval_SaveThread());
        c->yield_at = now + YIELD_MS;
    }
    if (!is_open(c))
        return NULL;
    int event = run(c, (uint32_t *)(c->ram + frame_at), deadline, now);
    if (PyErr_CheckSignals())                                   /* nobody else looks while compiled code runs */
        return NULL;
    return PyLong_FromLong(event);
}

static PyObject *core_swap(Core *c, PyObject *args)
{
    Py_buffer save, load;
    if (!is_open(c) || !PyArg_ParseTuple(args, "w*y*", &save, &load))
        return NULL;
    Py_ssize_t size = (Py_ssize_t)c->off[ENV_SIZE];
    int fits = save.len == size && load.len == size;
    if (fits) {
        memcpy(save.buf, c->env, size);
        memcpy(c->env, load.buf, size);
        ((cpu_fn)c->fn[F_TLB_FLUSH])(c->cpu);
    }
    PyBuffer_Release(&save);
    PyBuffer_Release(&load);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "a CPU context has the size that the engine's probe found");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *core_charge(Core *c, PyObject *value)
{
    long long cycles = PyLong_AsLongLong(value);
    if (PyErr_Occurred())
        return NULL;
    c->charged += cycles;
    return PyLong_FromUnsignedLongLong(c->retired + c->deliveries + c->charged);
}

static PyObject *core_flush_tlb(Core *c, PyObject *unused)
{
    if (!is_open(c))
        return NULL;
    ((cpu_fn)c->fn[F_TLB_FLUSH])(c->cpu);
    Py_RETURN_NONE;
}

static PyObject *core_flush_page(Core *c, PyObject *address)
{
    unsigned long linear = PyLong_AsUnsignedLong(address);
    if (PyErr_Occurred() || !is_open(c))
        return NULL;
    ((flush_page_fn)c->fn[F_TLB_FLUSH_PAGE])(c->cpu, linear & ~0xFFFUL);
    Py_RETURN_NONE;
}

static PyObject *core_forget_code(Core *c, PyObject *args)
{
    unsigned long long begin, end;
    if (!PyArg_ParseTuple(args, "KK", &begin, &end) || !is_open(c))
        return NULL;
    ((invalidate_fn)c->fn[F_INVALIDATE])(c->uc, begin, end);
    for (uint64_t page = (begin + 4095) >> 12; page < end >> 12 && page < c->ram_size >> 12; page++)
        c->has_code[page] = 0;  /* of a whole page nothing is left */
    Py_RETURN_NONE;
}

/* The up to 15 bytes at a linear address, through the TLB that the CPU has just fetched them with. */
static PyObject *core_code_at(Core *c, PyObject *address)
{
    unsigned long linear = PyLong_AsUnsignedLong(address);
    if (PyErr_Occurred() || !is_open(c))
        return NULL;
    uint64_t page = linear & ~0xFFFUL;
    for (int mode = 0; mode < TLB_MODES; mode++) {
        uint8_t *entry = tlb_entry(c, mode, page);
        if (FIELD(entry, TLB_EXECUTE, uint64_t) == page && FIELD(entry, TLB_PADDR, uint64_t) < c->ram_size) {
            Py_ssize_t size = 4096 - (linear - page) < 15 ? (Py_ssize_t)(4096 - (linear - page)) : 15;
            return PyBytes_FromStringAndSize((char *)(linear + FIELD(entry, TLB_ADDEND, uint64_t)), size);
        }
    }
    return PyBytes_FromStringAndSize(NULL, 0);
}

static PyObject *core_set_cr3(Core *c, PyObject *value)
{
    unsigned long cr3 = PyLong_AsUnsignedLong(value);
    if (PyErr_Occurred() || !is_open(c))
        return NULL;
    FIELD(c->env, c->off[O_CR] + 24, uint64_t) = cr3;
    ((cpu_fn)c->fn[F_TLB_FLUSH])(c->cpu);
    Py_RETURN_NONE;
}

static PyObject *core_inject(Core *c, PyObject *args)
{
    unsigned int error = 0, length = 0;
    int vector, kind;
    if (!PyArg_ParseTuple(args, "iiII", &vector, &kind, &error, &length))
        return NULL;
    c->inject = vector;
    c->inject_kind = kind;
    c->inject_error = error;
    c->inject_length = length;
    Py_RETURN_NONE;
}

static PyObject *core_go_on(Core *c, PyObject *unused)
{
    c->pass = true;
    Py_RETURN_NONE;
}

static PyObject *core_set_window(Core *c, PyObject *value)
{
    c->window = PyObject_IsTrue(value);
    Py_RETURN_NONE;
}

static PyObject *core_set_time(Core *c, PyObject *args)
{
    if (!PyArg_ParseTuple(args, "pK", &c->native_time, &c->time_offset))
        return NULL;
    Py_RETURN_NONE;
}

static int core_init(Core *c, PyObject *args, PyObject *kwargs)
{
    unsigned long long uc, ram, ram_size, has_code;
    PyObject *functions, *offsets, *owner;
    int inlined;
    if (!PyArg_ParseTuple(args, "KKKKO!O!Op", &uc, &ram, &ram_size, &has_code, &PyTuple_Type, &functions, &PyTuple_Type,
                          &offsets, &owner, &inlined))
        return -1;
    if (PyTuple_Size(functions) != FUNCTIONS || PyTuple_Size(offsets) != OFFSETS) {
        PyErr_SetString(PyExc_ValueError, "engine.py and the native core disagree; build the package again");
        return -1;
    }
    for (int i = 0; i < FUNCTIONS; i++)
        c->fn[i] = PyLong_AsVoidPtr(PyTuple_GetItem(functions, i));
    for (int i = 0; i < OFFSETS; i++)
        c->off[i] = PyLong_AsLongLong(PyTuple_GetItem(offsets, i));
    if (PyErr_Occurred())
        return -1;
    c->info_bytes = PyByteArray_FromStringAndSize(NULL, INFO_WORDS * sizeof *c->info);
    if (!c->info_bytes)
        return -1;
    c->info = (uint32_t *)PyByteArray_AsString(c->info_bytes);
    memset(c->info, 0, INFO_WORDS * sizeof *c->info);
    c->owner = Py_NewRef(owner);
    c->uc = (void *)(uintptr_t)uc;
    c->ram = (uint8_t *)(uintptr_t)ram;
    c->cpu = FIELD((uint8_t *)c->uc, c->off[O_CPU], uint8_t *);
    c->env = c->cpu + c->off[O_ENV];
    c->translator = FIELD((uint8_t *)c->uc, c->off[O_TRANSLATOR], uint8_t *);
    c->inject = -1;
    c->ram_size = ram_size;
    c->has_code = (uint8_t *)(uintptr_t)has_code;
    uintptr_t *class = CPU(c, O_CLASS, uintptr_t *);
    for (int i = 0; i < 64; i++)        /* a table of functions: take over the one that looks for interrupts */
        if (class[i] == (uintptr_t)c->fn[F_EXEC_INTERRUPT])
            class[i] = (uintptr_t)exec_interrupt;
    c->inlined = take_over_translator(c) && inlined;
    c->last = c->inlined ? &FIELD(c->env - c->off[LAST_BLOCK], 0, uint8_t *) : &c->last_block;
    c->next = cores;
    cores = c;
    return 0;
}

static void core_dealloc(Core *c)
{
    unlink_core(c);
    Py_XDECREF(c->owner);
    Py_XDECREF(c->info_bytes);
    PyTypeObject *type = Py_TYPE((PyObject *)c);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(c);
    Py_DECREF(type);
}

static PyObject *get_retired(Core *c, void *unused) { return PyLong_FromUnsignedLongLong(c->retired); }
static PyObject *get_deliveries(Core *c, void *unused) { return PyLong_FromUnsignedLongLong(c->deliveries); }
static PyObject *get_cycles(Core *c, void *unused)
{
    return PyLong_FromUnsignedLongLong(c->retired + c->deliveries + c->charged);
}
static PyObject *get_inlined(Core *c, void *unused) { return PyBool_FromLong(c->inlined); }
static PyObject *get_pending(Core *c, void *unused) { return PyLong_FromLong(c->inject); }

static PyObject *get_info(Core *c, void *unused)
{
    return PyMemoryView_FromObject(c->info_bytes);
}

static PyObject *get_env(Core *c, void *unused)
{
    return PyMemoryView_FromObject((PyObject *)c);
}

static PyObject *get_callbacks(Core *c, void *unused)
{
    return Py_BuildValue("(KKKKKKKKK)", (unsigned long long)(uintptr_t)c,
                         c->inlined ? 0ULL : (unsigned long long)(uintptr_t)on_block,
                         (unsigned long long)(uintptr_t)on_interrupt, (unsigned long long)(uintptr_t)on_invalid,
                         (unsigned long long)(uintptr_t)on_in, (unsigned long long)(uintptr_t)on_out,
                         (unsigned long long)(uintptr_t)on_sysenter, (unsigned long long)(uintptr_t)on_cpuid,
                         (unsigned long long)(uintptr_t)on_unmapped);
}

static PyMethodDef methods[] = {
    {"run", (PyCFunction)core_run, METH_VARARGS, "run(frame, deadline): run until the clock reads `deadline` or something happens, or for some time; the event"},
    {"close", (PyCFunction)core_close, METH_NOARGS, "close(): nothing runs any more; the engine is freed once nobody has a view on its state"},
    {"swap", (PyCFunction)core_swap, METH_VARARGS, "swap(save, load): exchange the whole CPU state, flush the TLB"},
    {"charge", (PyCFunction)core_charge, METH_O, "charge(cycles): move the clock without running; what it reads then"},
    {"flush_tlb", (PyCFunction)core_flush_tlb, METH_NOARGS, "flush_tlb(): forget all translations"},
    {"flush_page", (PyCFunction)core_flush_page, METH_O, "flush_page(linear): forget the translation of one page"},
    {"forget_code", (PyCFunction)core_forget_code, METH_VARARGS, "forget_code(begin, end): Python wrote to this RAM"},
    {"code_at", (PyCFunction)core_code_at, METH_O, "code_at(linear): bytes of the instruction just fetched there, or none"},
    {"set_cr3", (PyCFunction)core_set_cr3, METH_O, "set_cr3(address): load CR3, flush the TLB"},
    {"inject", (PyCFunction)core_inject, METH_VARARGS, "inject(vector, kind, error, length): deliver before the next instruction"},
    {"go_on", (PyCFunction)core_go_on, METH_NOARGS, "go_on(): execute the instruction that the last run stopped before"},
    {"set_time", (PyCFunction)core_set_time, METH_VARARGS, "set_time(native, offset): how a guest's RDTSC is answered"},
    {"set_window", (PyCFunction)core_set_window, METH_O, "set_window(on): stop when an interrupt could be taken"},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef getset[] = {
    {"retired", (getter)get_retired, NULL, "instructions retired since the core was made", NULL},
    {"deliveries", (getter)get_deliveries, NULL, "events delivered through the guest's IDT", NULL},
    {"cycles", (getter)get_cycles, NULL, "the clock: retired + deliveries + charged", NULL},
    {"pending", (getter)get_pending, NULL, "the vector that waits to be injected, or -1", NULL},
    {"inlined", (getter)get_inlined, NULL, "does translated code count for itself?", NULL},
    {"info", (getter)get_info, NULL, "what the last event was about", NULL},
    {"env", (getter)get_env, NULL, "the engine's CPU state, live", NULL},
    {"callbacks", (getter)get_callbacks, NULL, "addresses to register with the engine", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot slots[] = {{Py_tp_init, core_init}, {Py_tp_dealloc, core_dealloc}, {Py_tp_methods, methods},
                              {Py_tp_getset, getset}, {Py_tp_new, PyType_GenericNew}, {Py_bf_getbuffer, core_get_buffer},
                              {Py_bf_releasebuffer, core_release_buffer}, {0, NULL}};

static PyType_Spec spec = {"l4lab.machine._core.Core", sizeof(Core), 0, Py_TPFLAGS_DEFAULT, slots};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_core", "The native half of engine.py.", -1, NULL,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *m = PyModule_Create(&module);
    PyObject *type = PyType_FromSpec(&spec);
    if (!m || !type || PyModule_AddObjectRef(m, "Core", type) < 0)
        return NULL;
    Py_DECREF(type);
    return m;
}
