"""The parts of the interpreter that are the same for every instruction, in LLVM IR.

Dispatching, what stands at a page's end, at a breakpoint, behind a single step, in records not decoded yet, and where
compiled regions leave to other code.
"""

GLUE = """
define preserve_nonecc void @dispatch({arguments}) nounwind {{
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  %found = call i64 @"{find_code}"(ptr %cpu)
  %out = icmp eq i64 %found, 0
  br i1 %out, label %leave, label %go, !prof !1
go:
  %record = inttoptr i64 %found to ptr
  %basep = getelementptr i8, ptr %cpu, i64 {base}
  %newbase = load i64, ptr %basep
  %tlbp = getelementptr i8, ptr %cpu, i64 {tlb}
  %newtlb = load i64, ptr %tlbp
  %handler = load ptr, ptr %record
  %count = load i64, ptr %retired
  musttail call preserve_nonecc void %handler(ptr %record, ptr %cpu, i64 %newtlb, i64 %count, i64 %newbase)
  ret void
leave:
  ret void
}}

define preserve_nonecc void @cross({arguments}) nounwind {{
  %r = ptrtoint ptr %rec to i64
  %o = lshr i64 %r, {shift}
  %far = add i64 %base, %o
  %pc = and i64 %far, {addresses}
  %narrow = {narrow}
  %place = getelementptr i8, ptr %cpu, i64 {pc}
  store {pc_kind} %narrow, ptr %place
  musttail call preserve_nonecc void @dispatch(ptr %rec, ptr %cpu, i64 %tlb, i64 %icount, i64 %base)
  ret void
}}

define preserve_nonecc void @stopped({arguments}) nounwind {{
  %r = ptrtoint ptr %rec to i64
  %o = lshr i64 %r, {shift}
  %far = add i64 %base, %o
  %pc = and i64 %far, {addresses}
  %narrow = {narrow}
  %place = getelementptr i8, ptr %cpu, i64 {pc}
  store {pc_kind} %narrow, ptr %place
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  %reason = getelementptr i8, ptr %cpu, i64 {exit_reason}
  store i32 {step}, ptr %reason
  ret void
}}

define preserve_nonecc void @breakpoint({arguments}) nounwind {{
  %r = ptrtoint ptr %rec to i64
  %o = lshr i64 %r, {shift}
  %far = add i64 %base, %o
  %pc = and i64 %far, {addresses}
  %narrow = {narrow}
  %place = getelementptr i8, ptr %cpu, i64 {pc}
  store {pc_kind} %narrow, ptr %place
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  %reason = getelementptr i8, ptr %cpu, i64 {exit_reason}
  store i32 {breakpoint}, ptr %reason
  ret void
}}

define preserve_nonecc void @trapped({arguments}) nounwind {{
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  call void @"{deliver}"(ptr %cpu)
  %count = load i64, ptr %retired
  musttail call preserve_nonecc void @dispatch(ptr %rec, ptr %cpu, i64 %tlb, i64 %count, i64 %base)
  ret void
}}

define preserve_nonecc void @decode({arguments}) nounwind {{
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  %r = ptrtoint ptr %rec to i64
  %found = call i64 @"{decode_at}"(ptr %cpu, i64 %r, i64 %base)
  switch i64 %found, label %go [ i64 0, label %leave i64 1, label %again ]
go:
  %record = inttoptr i64 %found to ptr
  %basep = getelementptr i8, ptr %cpu, i64 {base}
  %newbase = load i64, ptr %basep
  %handler = load ptr, ptr %record
  musttail call preserve_nonecc void %handler(ptr %record, ptr %cpu, i64 %tlb, i64 %icount, i64 %newbase)
  ret void
again:
  %count = load i64, ptr %retired
  musttail call preserve_nonecc void @dispatch(ptr %rec, ptr %cpu, i64 %tlb, i64 %count, i64 %base)
  ret void
leave:
  ret void
}}

define void @enter(ptr %cpu) nounwind {{
  %inside = getelementptr i8, ptr %cpu, i64 {inside}
  store i8 1, ptr %inside
  fence seq_cst
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  %count = load i64, ptr %retired
  call preserve_nonecc void @dispatch(ptr null, ptr %cpu, i64 0, i64 %count, i64 0)
  store atomic i8 0, ptr %inside release, align 1
  ret void
}}

define void @enter_step(ptr %cpu) nounwind {{
  %inside = getelementptr i8, ptr %cpu, i64 {inside}
  store i8 1, ptr %inside
  fence seq_cst
  %found = call i64 @"{prepare_step}"(ptr %cpu)
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  %count = load i64, ptr %retired
  switch i64 %found, label %go [ i64 0, label %leave i64 1, label %again ]
go:
  %record = inttoptr i64 %found to ptr
  %basep = getelementptr i8, ptr %cpu, i64 {base}
  %base = load i64, ptr %basep
  %tlbp = getelementptr i8, ptr %cpu, i64 {tlb}
  %tlb = load i64, ptr %tlbp
  %handler = load ptr, ptr %record
  call preserve_nonecc void %handler(ptr %record, ptr %cpu, i64 %tlb, i64 %count, i64 %base)
  br label %leave
again:
  call preserve_nonecc void @dispatch(ptr null, ptr %cpu, i64 0, i64 %count, i64 0)
  br label %leave
leave:
  store atomic i8 0, ptr %inside release, align 1
  ret void
}}

define void @enter_wait(ptr %cpu) nounwind {{
  %inside = getelementptr i8, ptr %cpu, i64 {inside}
  store i8 1, ptr %inside
  fence seq_cst
  call void @"{wait}"(ptr %cpu)
  store atomic i8 0, ptr %inside release, align 1
  ret void
}}

define preserve_nonecc void @jump({arguments}) nounwind {{
  %jumpsp = getelementptr i8, ptr %cpu, i64 {jump_count}
  %jumps = load i64, ptr %jumpsp
  %jumps1 = add i64 %jumps, 1
  store i64 %jumps1, ptr %jumpsp
  %low = and i64 %jumps, {jump_mask}
  %sampled = icmp eq i64 %low, 0
  br i1 %sampled, label %note, label %start, !prof !1
note:
  %turn = lshr i64 %jumps, {jump_bits}
  %ring = and i64 %turn, {ring_mask}
  %from = getelementptr i8, ptr %cpu, i64 {jump_records}
  %fromp = getelementptr i64, ptr %from, i64 %ring
  store ptr %rec, ptr %fromp
  %to = getelementptr i8, ptr %cpu, i64 {jump_addresses}
  %top = getelementptr i64, ptr %to, i64 %ring
  store i64 %base, ptr %top
  br label %start
start:
  %limitp = getelementptr i8, ptr %cpu, i64 {limit}
  %limit = load i64, ptr %limitp
  %due = icmp uge i64 %icount, %limit
  br i1 %due, label %look, label %run, !prof !1
run:
  %tag = and i64 %base, {page_mask}
  %number = lshr i64 %base, {page_bits}
  %index = and i64 %number, {code_tlb_mask}
  %offset = mul i64 %index, {code_tlb_entry}
  %tablep = getelementptr i8, ptr %cpu, i64 {code_tlb}
  %table = load i64, ptr %tablep
  %address = add i64 %table, %offset
  %entry = inttoptr i64 %address to ptr
  %found = load i64, ptr %entry
  %same = icmp eq i64 %found, %tag
  br i1 %same, label %hit, label %look, !prof !0
hit:
  %slotp = getelementptr i8, ptr %entry, i64 8
  %slot = load i64, ptr %slotp
  %scaled = lshr i64 %slot, {shift}
  %newbase = sub i64 %tag, %scaled
  %inside = and i64 %base, {in_page}
  %distance = shl i64 %inside, {shift}
  %place = add i64 %slot, %distance
  %record = inttoptr i64 %place to ptr
  %handler = load ptr, ptr %record
  musttail call preserve_nonecc void %handler(ptr %record, ptr %cpu, i64 %tlb, i64 %icount, i64 %newbase)
  ret void
look:
  %pc = and i64 %base, {addresses}
  %narrow = {narrow}
  %pcp = getelementptr i8, ptr %cpu, i64 {pc}
  store {pc_kind} %narrow, ptr %pcp
  musttail call preserve_nonecc void @dispatch(ptr %rec, ptr %cpu, i64 %tlb, i64 %icount, i64 %base)
  ret void
}}
"""
