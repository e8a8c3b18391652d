; Names of places in memory, which programs know: "Mapping the Commodore 64", chapters 1 to 3.

; Characters
return = $0d
space = $20

; The processor's port
d6510 = $00
r6510 = $01

; BASIC
linnum = $14            ; a line's number, an address
txttab = $2b            ; where the program begins
vartab = $2d            ; where it ends
arytab = $2f
strend = $31
fretop = $33
memsiz = $37            ; where memory ends
curlin = $39            ; line that is executed; its high byte is $ff in direct mode
chrget = $73            ; next character of the program
chrgot = $79            ; the same one again
txtptr = $7a

; KERNAL
status = $90            ; of the last input or output
stkey = $91             ; row of the keyboard with STOP: $7f if it is held
verck = $93             ; 0: LOAD, else VERIFY
c3po = $94              ; bit 7: a byte waits to be sent on the serial bus
bsour = $95             ; that byte
ldtnd = $98             ; number of open files
dfltn = $99             ; device for input
dflto = $9a             ; and for output
msgflg = $9d            ; bit 7: messages, bit 6: errors are shown
time = $a0              ; clock, high byte first
sal = $ac               ; pointers of the screen's editor, LOAD and SAVE
eal = $ae
fnlen = $b7             ; of the file: length of its name
la = $b8                ; logical number
sa = $b9                ; secondary address
fa = $ba                ; device
fnadr = $bb             ; where its name is
stal = $c1              ; SAVE begins here
memuss = $c3            ; LOAD begins here
lstx = $c5              ; key that was held last
ndx = $c6               ; characters in the keyboard's buffer
rvs = $c7               ; not 0: reversed
indx = $c8              ; end of the line that is read
lxsp = $c9              ; row and column where the reading began
sfdx = $cb              ; key that is held, 64: none
blnsw = $cc             ; 0: the cursor blinks
blnct = $cd             ; interrupts until it changes
gdbln = $ce             ; character below it
blnon = $cf             ; not 0: the cursor is shown now
crsw = $d0              ; 0: a new line is to be read, 3: from the screen
pnt = $d1               ; the cursor's logical line in the screen's memory
pntr = $d3              ; and its place in it
qtsw = $d4              ; not 0: between quotes
lnmx = $d5              ; last place of the logical line, 39 or 79
tblx = $d6              ; row of the cursor
data = $d7              ; character that is printed
insrt = $d8             ; places that were inserted and are to be filled
ldtb1 = $d9             ; for each row: bit 7 if a logical line begins there, high bits of its address
user = $f3              ; the logical line in the colours' memory
keytab = $f5            ; table of the keys' characters
stack = $0100
buf = $0200             ; line that was read
lat = $0259             ; of each open file: logical number,
fat = $0263             ; device,
sat = $026d             ; and secondary address
keyd = $0277            ; keyboard's buffer
memstr = $0281          ; where memory begins
memend = $0283          ; and ends
timout = $0285
color = $0286           ; for characters that are printed
gdcol = $0287           ; colour below the cursor
hibase = $0288          ; page of the screen
xmax = $0289            ; size of the keyboard's buffer
rptflg = $028a          ; which keys repeat: bit 7 all, bit 6 none
kount = $028b           ; interrupts until the next repetition
delay = $028c           ; and until the first
shflag = $028d          ; SHIFT 1, C= 2, CTRL 4
lstshf = $028e          ; the same before
keylog = $028f          ; routine that chooses the table
mode = $0291            ; bit 7: SHIFT with C= does nothing
palnts = $02a6          ; 1: PAL

; Vectors
ierror = $0300
imain = $0302
sareg = $030c           ; registers for SYS: A, X, Y, P
usrpok = $0310
cinv = $0314            ; interrupt
cbinv = $0316           ; BRK
nminv = $0318
iopen = $031a
iclose = $031c
ichkin = $031e
ickout = $0320
iclrch = $0322
ibasin = $0324
ibsout = $0326
istop = $0328
igetin = $032a
iclall = $032c
usrcmd = $032e
iload = $0330
isave = $0332
tapebuffer = $033c

; Chips
vic = $d000
sid = $d400
colours = $d800
cia1 = $dc00
cia2 = $dd00

; The drive: see drive.py
drivecommand = $df00
drivedata = $df01
drivestatus = $df02
drivehere = $df03
