"""Functions of our own in XLA's programs on a CPU, compiled by LLVM when first traced.

A kernel is written in LLVM's intermediate representation, as two functions that emit instructions:
`plan` says how many items of work a call has, `item` does one of them. What stands between them and
XLA's foreign function interface (jaxlib/include/xla/ffi/api/c_api.h, whose binary layout holds for
jaxlib 0.10 to 0.12) is here: XLA calls a handler with a frame of pointers, and the threads of XLA's
own pool claim items, one after the other. No thread ever waits for another: the handler returns,
and the task that ends last tells XLA to go on, be it one that found no item left.
"""

import contextlib
import ctypes
import math
import threading
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import llvmlite.binding as llvm
from llvmlite import ir

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
POINTER = ir.PointerType()
# Numbers in a vector: of an AVX-512 register. Smaller machines take two or four for it.
LANES = 16
# One more thread of the pool is asked for each so many bytes to read: waking it takes microseconds.
BYTES_A_THREAD = 1 << 20

# Words of XLA's structures.
_WORD = 8
_FRAME_EXTENSION, _FRAME_API, _FRAME_CONTEXT = 1, 2, 3
_FRAME_OPERANDS, _FRAME_RESULTS, _FRAME_FUTURE = 9, 14, 21
_BUFFER_DATA, _BUFFER_SHAPE = 3, 5
_EXTENSION_METADATA = 3
# As 32-bit numbers.
_METADATA_MAJOR, _METADATA_MINOR = 6, 7
_API_SCHEDULE, _API_NUM_THREADS, _API_NEW_FUTURE, _API_SET_FUTURE = 17, 18, 19, 20
_API_VERSION = (0, 3)
# Words of a call's own notes, which are one more result and so outlive the handler.
_NOTE_API, _NOTE_FUTURE, _NOTE_NEXT, _NOTE_LEFT, _NOTE_ITEMS, _NUM_NOTES = range(6)

_LN2_HIGH = 355 / 512
_CAPSULE = b"xla._CUSTOM_CALL_TARGET"

# Compiled code goes with its engine, so engines stay.
_ENGINES: dict[str, llvm.ExecutionEngine] = {}
_LOCK = threading.Lock()


def number(value: int) -> ir.Constant:
    """A 64-bit one."""
    return ir.Constant(I64, value)


def floats(value: float, lanes: int) -> ir.Constant:
    """A vector of f32, all alike."""
    return ir.Constant(ir.VectorType(F32, lanes), [value] * lanes)


class Builder(ir.IRBuilder):
    """Emits instructions; offsets and counts are 64-bit integers."""

    @contextlib.contextmanager
    def loop(self, first: ir.Value, last: ir.Value, step: int = 1) -> Iterator[ir.Value]:
        """What is emitted within runs for each of range(first, last, step), which is given."""
        head, body, after = (self.append_basic_block(name) for name in ("head", "body", "after"))
        before = self.block
        self.branch(head)
        self.position_at_end(head)
        index = self.phi(I64)
        index.add_incoming(first, before)
        self.cbranch(self.icmp_signed("<", index, last), body, after)
        self.position_at_end(body)
        yield index
        index.add_incoming(self.add(index, number(step)), self.block)
        self.branch(head)
        self.position_at_end(after)

    def at(self, base: ir.Value, element: ir.Type, index: ir.Value) -> ir.Value:
        """Pointer to the so-many-th element."""
        return self.gep(base, [index], source_etype=element)

    def read(self, base: ir.Value, element: ir.Type, index: ir.Value, lanes: int = 0) -> ir.Value:
        """An element, or so many from there on as a vector of f32."""
        place = self.at(base, element, index)
        if not lanes:
            return self.load(place, typ=element)
        size = 1 if element is I8 else 4
        vector = self.load(place, typ=ir.VectorType(element, lanes), align=size)
        return self.sitofp(vector, ir.VectorType(F32, lanes)) if element is I8 else vector

    def write(self, value: ir.Value, base: ir.Value, index: ir.Value) -> None:
        """f32, one or a vector, to the so-many-th place on."""
        self.store(value, self.at(base, F32, index), align=4)

    def variable(self, value: ir.Value) -> ir.Value:
        """Memory of its own for what changes in loops; LLVM makes a register of it."""
        with self.goto_entry_block():
            place = self.memory(value.type)
        self.store(value, place)
        return place

    def memory(self, kind: ir.Type, count: ir.Value | None = None) -> ir.Value:
        """Room for so many, until the function returns."""
        place = self.alloca(kind, count)
        place.type = POINTER  # llvmlite's own is of the kind that LLVM gave up.
        return place

    def value(self, variable: ir.Value) -> ir.Value:
        """What a variable holds."""
        return self.load(variable, typ=variable.allocated_type)

    def total(self, vector: ir.Value) -> ir.Value:
        """The sum over its lanes."""
        name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
        call = self.intrinsic(name, F32, ir.Constant(F32, -0.0), vector)
        # In any order: the same on one machine, and faster than one by one.
        call.fastmath = ir.instructions.FastMathFlags(["reassoc"])
        return call

    def largest(self, vector: ir.Value) -> ir.Value:
        """Over its lanes."""
        return self.intrinsic(f"llvm.vector.reduce.fmax.v{vector.type.count}f32", F32, vector)

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Of two floats, or of vectors lane by lane."""
        return self.select(self.fcmp_ordered(">", a, b), a, b)

    def smaller_integer(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Of two integers."""
        return self.select(self.icmp_signed("<", a, b), a, b)

    def larger_integer(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Of two integers."""
        return self.select(self.icmp_signed(">", a, b), a, b)

    def ceil_div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Of positive integers, rounded up."""
        return self.sdiv(self.add(a, self.sub(b, number(1))), b)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a · b + c, in one rounding where the machine can."""
        return self.fadd(self.fmul(a, b, flags=("contract",)), c, flags=("contract",))

    def spread(self, value: ir.Value, lanes: int) -> ir.Value:
        """A vector of one number."""
        empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.insert_element(empty, value, ir.Constant(I32, 0))
        everywhere = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.shuffle_vector(first, empty, everywhere)

    def intrinsic(self, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        """A call of LLVM's function of that full name."""
        kinds = [arg.type for arg in args]
        function = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(result, kinds), name
        )
        return self.call(function, args)

    def prefetch(self, place: ir.Value) -> None:
        """Fetches what lies there into the cache; may point anywhere."""
        read, keep, data = (ir.Constant(I32, value) for value in (0, 3, 1))
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), place, read, keep, data)

    def word(self, base: ir.Value, index: int, kind: ir.Type = I64) -> ir.Value:
        """The so-many-th word of a structure, an integer or a pointer."""
        return self.load(self.at(base, I64, number(index)), typ=kind)

    def put(self, base: ir.Value, index: int, value: ir.Value) -> None:
        """Sets a word of a structure."""
        if isinstance(value.type, ir.PointerType):
            value = self.ptrtoint(value, I64)
        self.store(value, self.at(base, I64, number(index)))


def exp(b: Builder, x: ir.Value) -> ir.Value:
    """e to the power of a vector of numbers up to 0, or NaN; off by 1e-7 of it at most.

    2^n · e^r with a whole n and |r| up to ln(2) / 2, where eight terms of the series are enough.
    Below -87 it stays at e^-87, for which f32 has room.
    """
    lanes = x.type.count
    least = floats(-87.0, lanes)
    x = b.select(b.fcmp_ordered("<", x, least), least, x)
    whole = b.intrinsic(f"llvm.rint.v{lanes}f32", x.type, b.fmul(x, floats(1 / math.log(2), lanes)))
    # ln(2) in two parts: n times the first is exact.
    rest = b.multiply_add(whole, floats(-_LN2_HIGH, lanes), x)
    rest = b.multiply_add(whole, floats(_LN2_HIGH - math.log(2), lanes), rest)
    power = floats(1 / math.factorial(7), lanes)
    for term in range(6, -1, -1):
        power = b.multiply_add(power, rest, floats(1 / math.factorial(term), lanes))
    integers = ir.VectorType(I32, lanes)
    # Of NaN it makes 0, and the power is NaN all the same.
    exponent = b.intrinsic(f"llvm.fptosi.sat.v{lanes}i32.v{lanes}f32", integers, whole)
    shifted = b.add(exponent, ir.Constant(integers, [127] * lanes))
    two_to_whole = b.shl(shifted, ir.Constant(integers, [23] * lanes))
    return b.fmul(power, b.bitcast(two_to_whole, x.type))


# Gets operands' and results' data, axis lengths by operand and axis, and the number of threads;
# gives the number of items, about how many bytes they read, and sizes.
Plan = Callable[
    [Builder, Sequence[ir.Value], Callable[[int, int], ir.Value], ir.Value],
    tuple[ir.Value, ir.Value, list],
]
# Gets operands' and results' data, sizes from the plan, and which item.
Item = Callable[[Builder, Sequence[ir.Value], Sequence[ir.Value], ir.Value], None]


def call(
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    operands: Sequence[jax.Array],
    num_sizes: int,
    plan: Plan,
    item: Item,
) -> list[jax.Array]:
    """What a kernel makes of its operands, for use under `jit`, on a CPU.

    Args:
      name: of the kernel; stands for `plan` and `item`, which are asked the first time only, and so
        for all that they depend on.
      results: shapes and dtypes.
      operands: arrays.
      num_sizes: how many sizes the plan tells.
      plan: emits how many items there are, about how many bytes they read, and sizes that all items
        want to know.
      item: emits the work of one, which writes to no place that another one reads or writes.
    """
    count = len(operands) + len(results)
    with _LOCK:
        if name not in _ENGINES:
            _ENGINES[name] = _compile(name, len(operands), count, num_sizes, plan, item)
    notes = jax.ShapeDtypeStruct((2 * (_NUM_NOTES + count + num_sizes),), jnp.uint32)
    return jax.ffi.ffi_call(name, (*results, notes))(*operands)[:-1]


def _compile(name, num_operands, num_buffers, num_sizes, plan, item) -> llvm.ExecutionEngine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module(name)
    module.triple = llvm.get_process_triple()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module.data_layout = str(machine.target_data)
    work = _emit_item(module, num_buffers, num_sizes, item)
    task = _emit_task(module, num_buffers, num_sizes, work)
    _emit_handler(module, num_operands, num_buffers, plan, task)
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(compiled, passes)
    engine = llvm.create_mcjit_compiler(compiled, machine)
    engine.finalize_object()
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new_capsule(engine.get_function_address("handler"), _CAPSULE, None)
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return engine


def _function(module, name, args, result=ir.VoidType()):
    function = ir.Function(module, ir.FunctionType(result, args), name)
    return function, Builder(function.append_basic_block())


def _emit_item(module, num_buffers, num_sizes, item):
    function, b = _function(module, "item", [POINTER] * num_buffers + [I64] * (num_sizes + 1))
    for arg in function.args[:num_buffers]:
        arg.add_attribute("noalias")
    buffers, sizes = function.args[:num_buffers], function.args[num_buffers:-1]
    item(b, buffers, sizes, function.args[-1])
    b.ret_void()
    return function


def _emit_task(module, num_buffers, num_sizes, work):
    """What a thread does: items, until none is left."""
    function, b = _function(module, "task", [POINTER])
    notes = function.args[0]
    buffers = [b.word(notes, _NUM_NOTES + i, POINTER) for i in range(num_buffers)]
    sizes = [b.word(notes, _NUM_NOTES + num_buffers + i) for i in range(num_sizes)]
    items = b.word(notes, _NOTE_ITEMS)
    claim, do, done = (b.append_basic_block(name) for name in ("claim", "do", "done"))
    b.branch(claim)
    b.position_at_end(claim)
    mine = b.atomic_rmw("add", b.at(notes, I64, number(_NOTE_NEXT)), number(1), "acq_rel")
    b.cbranch(b.icmp_signed("<", mine, items), do, done)
    b.position_at_end(do)
    b.call(work, [*buffers, *sizes, mine])
    b.branch(claim)
    b.position_at_end(done)
    # Read before this thread says that it is done: afterwards the notes may be gone.
    api, future = b.word(notes, _NOTE_API, POINTER), b.word(notes, _NOTE_FUTURE)
    left = b.atomic_rmw("sub", b.at(notes, I64, number(_NOTE_LEFT)), number(1), "acq_rel")
    is_last = b.icmp_signed("==", left, number(1))
    with b.if_then(b.and_(is_last, b.icmp_signed("!=", future, number(0)))):
        _ask(b, api, _API_SET_FUTURE, [future])
    b.ret_void()
    return function


def _emit_handler(module, num_operands, num_buffers, plan, task):
    """What XLA calls: notes what the call is about, and has it done."""
    function, b = _function(module, "handler", [POINTER], POINTER)
    frame, nothing = function.args[0], ir.Constant(POINTER, None)
    with b.if_then(b.icmp_signed("!=", b.word(frame, _FRAME_EXTENSION), number(0))):
        # No call yet: XLA asks for which version this is made. It has no other extension.
        metadata = b.word(b.word(frame, _FRAME_EXTENSION, POINTER), _EXTENSION_METADATA, POINTER)
        for place, version in zip((_METADATA_MAJOR, _METADATA_MINOR), _API_VERSION, strict=True):
            b.store(ir.Constant(I32, version), b.at(metadata, I32, number(place)))
        b.ret(nothing)
        b.position_at_end(b.append_basic_block())
    api, context = b.word(frame, _FRAME_API, POINTER), b.word(frame, _FRAME_CONTEXT)
    operands = b.word(frame, _FRAME_OPERANDS, POINTER)
    results = b.word(frame, _FRAME_RESULTS, POINTER)
    num_results = num_buffers - num_operands
    buffers = [b.word(operands, i, POINTER) for i in range(num_operands)]
    buffers += [b.word(results, i, POINTER) for i in range(num_results)]
    data = [b.word(buffer, _BUFFER_DATA, POINTER) for buffer in buffers]
    notes = b.word(b.word(results, num_results, POINTER), _BUFFER_DATA, POINTER)

    def shape(buffer, axis):
        return b.word(b.word(buffers[buffer], _BUFFER_SHAPE, POINTER), axis)

    count = b.variable(number(1))
    _ask(b, api, _API_NUM_THREADS, [context, count])
    items, num_bytes, sizes = plan(b, data, shape, b.value(count))
    for place, value in enumerate([*data, *sizes], _NUM_NOTES):
        b.put(notes, place, value)
    worth = b.add(b.sdiv(num_bytes, number(BYTES_A_THREAD)), number(1))
    threads = b.smaller_integer(b.smaller_integer(b.value(count), worth), items)
    # At least this one, also where there is nothing to do.
    threads = b.larger_integer(threads, number(1))
    b.put(notes, _NOTE_API, api)
    b.put(notes, _NOTE_NEXT, number(0))
    b.put(notes, _NOTE_ITEMS, items)
    b.put(notes, _NOTE_LEFT, threads)
    b.put(notes, _NOTE_FUTURE, number(0))
    with b.if_then(b.icmp_signed(">", threads, number(1))):
        future = b.word(_ask(b, api, _API_NEW_FUTURE, [number(0)]), 2)
        b.put(notes, _NOTE_FUTURE, future)
        b.put(frame, _FRAME_FUTURE, future)
        with b.loop(number(1), threads):
            _ask(b, api, _API_SCHEDULE, [context, task, notes])
    b.call(task, [notes])
    b.ret(nothing)


def _ask(b, api, function, args):
    """Calls one of XLA's functions; gives the structure of its arguments back.

    What these answer is not looked at: without a pool of threads, the one thing that can go wrong,
    the number of threads stays 1, and no other of them is called.
    """
    words = [number(_WORD * (len(args) + 2)), number(0), *args]
    with b.goto_entry_block():
        structure = b.memory(I64, number(len(words)))
    for place, value in enumerate(words):
        b.put(structure, place, value)
    kind = ir.FunctionType(POINTER, [POINTER]).as_pointer()
    b.call(b.word(api, function, kind), [structure])
    return structure
