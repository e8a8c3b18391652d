; The program in BASIC's place: a prompt, with the commands that load and start other programs.
; Programs are stored as BASIC stores them; of the language there are the statements in the table below, whole numbers of 32
; bits, and strings in quotes. Anything else is a syntax error.

*= $a000
        .word coldstart, warmstart

number = $61            ; result of an expression, low byte first
other = $69             ; the other operand
product = $57
textend = $22           ; address of a text that is shown
quoted = $0f            ; LIST: bit 7 between quotes
negative = $66
linebelow = $5f         ; a line that was looked for: where it is, or should be
keyword = $71           ; pointer into the keywords

; Words in the order of their tokens, from $80 on; the last character has bit 7.
words:  .text "EN", $c4, "FO", $d2, "NEX", $d4, "DAT", $c1, "INPUT", $a3, "INPU", $d4, "DI", $cd, "REA", $c4
        .text "LE", $d4, "GOT", $cf, "RU", $ce, "I", $c6, "RESTOR", $c5, "GOSU", $c2, "RETUR", $ce, "RE", $cd
        .text "STO", $d0, "O", $ce, "WAI", $d4, "LOA", $c4, "SAV", $c5, "VERIF", $d9, "DE", $c6, "POK", $c5
        .text "PRINT", $a3, "PRIN", $d4, "CON", $d4, "LIS", $d4, "CL", $d2, "CM", $c4, "SY", $d3, "OPE", $ce
        .text "CLOS", $c5, "GE", $d4, "NE", $d7, "TAB", $a8, "T", $cf, "F", $ce, "SPC", $a8, "THE", $ce
        .text "NO", $d4, "STE", $d0, $ab, $ad, $aa, $af, $de, "AN", $c4, "O", $d2, $be, $bd, $bc
        .text "SG", $ce, "IN", $d4, "AB", $d3, "US", $d2, "FR", $c5, "PO", $d3, "SQ", $d2, "RN", $c4
        .text "LO", $c7, "EX", $d0, "CO", $d3, "SI", $ce, "TA", $ce, "AT", $ce, "PEE", $cb, "LE", $ce
        .text "STR", $a4, "VA", $cc, "AS", $c3, "CHR", $a4, "LEFT", $a4, "RIGHT", $a4, "MID", $a4, "G", $cf
        .byte 0

t_end = $80
t_goto = $89
t_run = $8a
t_rem = $8f
t_stop = $90
t_load = $93
t_save = $94
t_verify = $95
t_poke = $97
t_print = $99
t_list = $9b
t_clr = $9c
t_sys = $9e
t_new = $a2
t_plus = $aa
t_minus = $ab
t_times = $ac
t_peek = $c2
t_chr = $c7

statements:
        .byte t_end, t_goto, t_run, t_rem, t_stop, t_load, t_save, t_verify, t_poke, t_print, t_list, t_clr, t_sys, t_new
statementsend:
routines:
        .word doend-1, dogoto-1, dorun-1, dorem-1, dostop-1, bload-1, bsave-1, bverify-1, dopoke-1, doprint-1, dolist-1
        .word doclr-1, dosys-1, donew-1

; What can go wrong, by the numbers that BASIC has for it; each text ends in a character with bit 7.
syntaxerror = 11
quantityerror = 14
memoryerror = 16
lineerror = 17
typeerror = 22
verifyerror = 28
loaderror = 29
errornumbers:
        .byte 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 14, 16, 17, 22, 28, 29, 0
errortexts:
        .text "TOO MANY FILE", $d3, "FILE OPE", $ce, "FILE NOT OPE", $ce, "FILE NOT FOUN", $c4
        .text "DEVICE NOT PRESEN", $d4, "NOT INPUT FIL", $c5, "NOT OUTPUT FIL", $c5, "MISSING FILE NAM", $c5
        .text "ILLEGAL DEVICE NUMBE", $d2, "SYNTA", $d8, "ILLEGAL QUANTIT", $d9, "OUT OF MEMOR", $d9
        .text "UNDEF'D STATEMEN", $d4, "TYPE MISMATC", $c8, "VERIF", $d9, "LOA", $c4, "UNKNOW", $ce
errortext:      .text " ERRO", $d2
breaktext:      .text 13, "BREA", $cb
intext:         .text " IN", $a0
readytext:      .text 13, "READY.", $8d
banner:         .text 13, "     **** POLYVISOR 64 FREE ROM ****", 13, 13, $a0
freetext:       .text " BYTES FRE", $c5, $8d
oktext:         .text 13, "O", $cb

; Where programs expect them.
*= $a437
error:  jmp (ierror)
*= $a474
ready:  jmp tellready
*= $a483
main:   jmp (imain)
*= $a533
        jmp relink
*= $a642
        jmp new
*= $a659
        jsr totextstart
        jmp clear
*= $a68e
totextstart:
        lda txttab              ; the byte before the program
        sec
        sbc #1
        sta txtptr
        lda txttab+1
        sbc #0
        sta txtptr+1
        rts
*= $a7ae
        jmp nextstatement
*= $a871
        jmp dorun
*= $ab1e
        jmp showzero

coldstart:
        ldx #$fb
        txs
        ldx #initend-init-1
1:      lda init,x
        sta chrget,x
        dex
        bpl 1b
        ldx #vectorsend-vectors-1
2:      lda vectors,x
        sta ierror,x
        dex
        bpl 2b
        lda #$4c
        sta usrpok
        lda #<quantity
        sta usrpok+1
        lda #>quantity
        sta usrpok+2
        sec
        jsr $ff9c
        stx txttab
        sty txttab+1
        sec
        jsr $ff99
        stx memsiz
        sty memsiz+1
        ldy #0
        tya
        sta (txttab),y          ; a zero is before every line
        inc txttab
        jsr new
        lda #<banner
        ldy #>banner
        jsr show
        lda memsiz
        sec
        sbc txttab
        tax
        lda memsiz+1
        sbc txttab+1
        jsr shownumber
        lda #<freetext
        ldy #>freetext
        jsr show
        jmp ready

; The next character of the program in A; carry clear: a digit; Z: the statement's end. It is executed in the zero page.
init:   inc txtptr
        bne 1f
        inc txtptr+1
1:      lda $ffff               ; txtptr is this operand
        cmp #':'
        bcs 2f
        cmp #' '
        beq init
        sec
        sbc #'0'
        sec
        sbc #$d0
2:      rts
initend:
vectors:
        .word showerror, readcommand
vectorsend:

warmstart:
        jsr $ffcc
        ldx #$fb
        txs
tellready:
        lda #$ff
        sta curlin+1
        lda #$80
        jsr $ff90
        lda #<readytext
        ldy #>readytext
        jsr show
        jmp main

; Read a line, and do or keep what it says.
readcommand:
        ldx #$fb
        txs
        ldx #0
1:      jsr $ffcf
        cmp #return
        beq 2f
        cpx #88
        bcs 1b                  ; more does not fit
        sta buf,x
        inx
        bcc 1b
2:      lda #0
        sta buf,x
        sta buf+1,x             ; nothing follows
        sta buf+2,x
        lda #<buf-1
        sta txtptr
        lda #>buf-1
        sta txtptr+1
        jsr chrget
        bne 3f
        jmp main                ; an empty line
3:      bcc keepline
        jsr crunch
        jsr tobuffer
        jsr chrget
        jsr execute
        jmp nextstatement
tobuffer:
        lda #<buf-1
        sta txtptr
        lda #>buf-1
        sta txtptr+1
        rts

; A line with a number replaces the program's line of that number.
keepline:
        jsr readlinenumber
        jsr crunch              ; Y becomes its length
        sty length
        jsr findline
        bcc 2f
        jsr removeline
2:      lda buf
        beq 4f
        lda length
        clc
        adc #5                  ; link, number, zero
        sta distance
        jsr insertroom
        ldy #0
        lda #1                  ; relink makes it what it should be
        sta (linebelow),y
        iny
        sta (linebelow),y
        iny
        lda linnum
        sta (linebelow),y
        iny
        lda linnum+1
        sta (linebelow),y
        iny
        ldx #$ff
3:      inx
        lda buf,x
        sta (linebelow),y
        iny
        cpx length
        bne 3b
4:      jsr relink
        jsr clear
        jmp main
length = $0b
distance = $0c
token = $0d
wordstart = $0e

; Words from txtptr on become tokens, in buf. Y: how long that is, without the zero behind it.
crunch: ldx txtptr
        ldy #0
        sty quoted
nextword:
        lda buf,x
        bne 0f
        jmp crunched
0:      cmp #'"'
        bne 1f
        lda quoted
        eor #$80
        sta quoted
        lda #'"'
1:      bit quoted
        bmi copy
        bvs copy
        cmp #'?'
        bne 2f
        lda #t_print
        bne copy
2:      cmp #space
        beq copy
        cmp #$ff
        beq copy
        cmp #'0'
        bcc 3f
        cmp #'<'
        bcc copy                ; digits, colon, semicolon
3:      stx wordstart
        sty length
        lda #<words
        sta keyword
        lda #>words
        sta keyword+1
        lda #$7f
        sta token
4:      inc token
        ldx wordstart
        ldy #0
5:      lda buf,x
        beq 6f
        eor (keyword),y
        beq 7f
        cmp #$80                ; the last character of the word, or a shifted one, which abbreviates it
        beq found
6:      lda (keyword),y         ; to the next word
        bmi 8f
        iny
        bne 6b
7:      lda (keyword),y
        bmi found
        inx
        iny
        bne 5b
8:      tya
        sec
        adc keyword
        sta keyword
        bcc 9f
        inc keyword+1
9:      ldy #0
        lda (keyword),y
        bne 4b
        ldx wordstart           ; no word
        ldy length
        lda buf,x
        bne copy
found:  ldy length
        lda token
        cmp #t_rem
        bne copy
        lda #$40
        sta quoted
        lda #t_rem
copy:   sta buf,y
        inx
        iny
        jmp nextword
crunched:
        sta buf,y
        sta buf+1,y
        sta buf+2,y
        sty length
        rts

; A number below 64000 from the program, to linnum.
readlinenumber:
        jsr decimal
        lda number+2
        ora number+3
        bne 1f
        lda number
        sta linnum
        lda number+1
        sta linnum+1
        cmp #>64000
        bcs 1f
        jmp chrgot
1:      jmp syntax

; Carry: there is a line linnum. linebelow: where it is or should be.
findline:
        lda txttab
        ldx txttab+1
1:      sta linebelow
        stx linebelow+1
        ldy #1
        lda (linebelow),y
        beq 3f
        ldy #3
        lda linnum+1
        cmp (linebelow),y
        bcc 4f
        bne 2f
        dey
        lda linnum
        cmp (linebelow),y
        bcc 4f
        beq 4f                  ; with the carry set
2:      ldy #1
        lda (linebelow),y
        tax
        dey
        lda (linebelow),y
        jmp 1b
3:      clc
4:      rts

; What follows the line at linebelow moves down over it.
removeline:
        ldy #0
        lda (linebelow),y
        sta textend
        iny
        lda (linebelow),y
        sta textend+1
        lda linebelow
        sta product
        lda linebelow+1
        sta product+1
        ldy #0
1:      lda textend
        cmp vartab
        lda textend+1
        sbc vartab+1
        bcs 2f
        lda (textend),y
        sta (product),y
        inc textend
        bne 3f
        inc textend+1
3:      inc product
        bne 1b
        inc product+1
        bne 1b
2:      lda product
        sta vartab
        lda product+1
        sta vartab+1
        rts

; What is from linebelow on moves up by distance.
insertroom:
        lda vartab
        sta textend
        clc
        adc distance
        sta product
        lda vartab+1
        sta textend+1
        adc #0
        sta product+1
        lda product
        cmp memsiz
        lda product+1
        sbc memsiz+1
        bcc 1f
        ldx #memoryerror
        jmp error
1:      lda product
        sta vartab
        lda product+1
        sta vartab+1
        ldy #0
2:      lda textend
        cmp linebelow
        bne 3f
        lda textend+1
        cmp linebelow+1
        beq 6f
3:      lda textend
        bne 4f
        dec textend+1
4:      dec textend
        lda product
        bne 5f
        dec product+1
5:      dec product
        lda (textend),y
        sta (product),y
        jmp 2b
6:      rts

; Each line begins with the address of the next one.
relink: lda txttab
        sta textend
        lda txttab+1
        sta textend+1
1:      ldy #1
        lda (textend),y
        beq 4f
        ldy #4
2:      lda (textend),y
        beq 3f
        iny
        bne 2b
3:      iny
        tya
        clc
        adc textend
        tax
        ldy #0
        sta (textend),y
        lda textend+1
        adc #0
        iny
        sta (textend),y
        stx textend
        sta textend+1
        bne 1b
4:      rts

new:    ldy #0
        tya
        sta (txttab),y
        iny
        sta (txttab),y
        lda txttab
        clc
        adc #2
        sta vartab
        lda txttab+1
        adc #0
        sta vartab+1
        jsr totextstart
clear:  lda vartab
        ldx vartab+1
        sta arytab
        stx arytab+1
        sta strend
        stx strend+1
        lda memsiz
        ldx memsiz+1
        sta fretop
        stx fretop+1
        jmp $ffe7

; Go on after a statement.
nextstatement:
        jsr $ffe1
        bne 1f
dostop: lda #<breaktext
        ldy #>breaktext
        jsr show
        jmp showplace
1:      ldy #0
        lda (txtptr),y
        beq 2f
        cmp #':'
        beq 3f
        jmp syntax
2:      lda txtptr+1            ; what was typed has no next line
        cmp #>buf
        beq 4f
        ldy #2
        lda (txtptr),y
        beq 4f
        iny
        lda (txtptr),y
        sta curlin
        iny
        lda (txtptr),y
        sta curlin+1
        lda txtptr
        clc
        adc #4
        sta txtptr
        bcc 3f
        inc txtptr+1
3:      jsr chrget
        jsr execute
        jmp nextstatement
doend:
4:      jmp ready

; The statement that begins with A. Its routine gets the character that follows.
execute:
        beq 2f
        ldx #statementsend-statements-1
1:      cmp statements,x
        beq 3f
        dex
        bpl 1b
        jmp syntax
2:      rts
3:      txa
        asl a
        tax
        lda routines+1,x
        pha
        lda routines,x
        pha
        jmp chrget

dorem:  ldy #0
1:      lda (txtptr),y
        beq 2f
        inc txtptr
        bne 1b
        inc txtptr+1
        bne 1b
2:      rts

dorun:  beq 1f
        php
        jsr clear
        plp
        jsr chrgot
        jmp dogoto
1:      jsr clear
        jmp totextstart
doclr = clear
donew:  jsr new
        jmp ready

dogoto: bcs syntax
        jsr readlinenumber
        jsr findline
        bcs 1f
        ldx #lineerror
        jmp error
1:      lda linebelow
        sec
        sbc #1
        sta txtptr
        lda linebelow+1
        sbc #0
        sta txtptr+1
        rts

dosys:  jsr word
        jsr 1f
        php
        sta sareg
        stx sareg+1
        sty sareg+2
        pla
        sta sareg+3
        rts
1:      lda sareg+3
        pha
        lda sareg
        ldx sareg+1
        ldy sareg+2
        plp
        jmp (linnum)

dopoke: jsr word
        lda linnum+1
        pha
        lda linnum
        pha
        jsr comma
        jsr byte
        pla
        sta linnum
        pla
        sta linnum+1
        ldy #0
        txa
        sta (linnum),y
        rts

syntax: ldx #syntaxerror
        .byte $2c
quantity:
        ldx #quantityerror
        jmp error

; The character in A must be at txtptr; the next one follows.
comma:  lda #','
        .byte $2c
opening:
        lda #'('
        .byte $2c
closing:
        lda #')'
expect: ldy #0
        cmp (txtptr),y
        bne syntax
        jmp chrget

; The value of an expression: of 16 bits in linnum, of 8 in X, of 32, with sign, in number.
byte:   jsr word
        lda linnum+1
        bne quantity
        ldx linnum
        jmp chrgot
word:   jsr expression
        lda number+2
        ora number+3
        bne quantity
        lda number
        sta linnum
        lda number+1
        sta linnum+1
        jmp chrgot

expression:
        jsr term
1:      jsr chrgot
        cmp #t_plus
        beq 2f
        cmp #t_minus
        beq 2f
        rts
2:      pha
        ldx #3
3:      lda number,x
        pha
        dex
        bpl 3b
        jsr chrget
        jsr term
        ldx #0
4:      pla
        sta other,x
        inx
        cpx #4
        bne 4b
        pla
        cmp #t_plus
        beq 5f
        jsr negate
5:      ldx #0
        ldy #4
        clc
6:      lda number,x
        adc other,x
        sta number,x
        inx
        dey
        bne 6b
        beq 1b

term:   jsr factor
1:      jsr chrgot
        cmp #t_times
        beq 2f
        rts
2:      ldx #3
3:      lda number,x
        pha
        dex
        bpl 3b
        jsr chrget
        jsr factor
        ldx #0
4:      pla
        sta other,x
        inx
        cpx #4
        bne 4b
        jsr multiply
        jmp 1b

; number becomes number times other.
multiply:
        ldx #3
1:      lda number,x
        sta product,x
        lda #0
        sta number,x
        dex
        bpl 1b
        ldy #32
2:      asl number
        rol number+1
        rol number+2
        rol number+3
        asl product
        rol product+1
        rol product+2
        rol product+3
        bcc 4f
        clc
        ldx #$fc
3:      lda number+4-256,x
        adc other+4-256,x
        sta number+4-256,x
        inx
        bne 3b
4:      dey
        bne 2b
        rts

negate: sec
        ldx #$fc
1:      lda #0
        sbc number+4-256,x
        sta number+4-256,x
        inx
        bne 1b
        rts

factor: tsx
        cpx #48
        bcc toodeep
        jsr chrgot
        bcc decimal
        cmp #t_minus
        bne 1f
        jsr chrget
        jsr factor
        jmp negate
1:      cmp #t_plus
        bne 2f
        jsr chrget
        jmp factor
2:      cmp #'('
        bne 3f
        jsr chrget
        jsr expression
        jmp closing
3:      cmp #t_peek
        bne 5f
        jsr chrget
        lda linnum              ; POKE has its address there
        pha
        lda linnum+1
        pha
        jsr opening
        jsr word
        jsr closing
        ldy #0
        lda (linnum),y
        sta number
        sty number+1
        sty number+2
        sty number+3
        pla
        sta linnum+1
        pla
        sta linnum
        rts
5:      cmp #'"'
        beq 6f
        jmp syntax
6:      ldx #typeerror
        jmp error
toodeep:
        ldx #memoryerror
        jmp error

; The digits at txtptr.
decimal:
        lda #0
        sta number
        sta number+1
        sta number+2
        sta number+3
        jsr chrgot
1:      bcs 3f
        sbc #'0'-1              ; the carry is clear
        pha
        lda number+3
        cmp #$0c                ; ten times that would not fit
        bcs 4f
        lda #10
        sta other
        lda #0
        sta other+1
        sta other+2
        sta other+3
        jsr multiply
        pla
        clc
        adc number
        sta number
        bcc 2f
        inc number+1
        bne 2f
        inc number+2
        bne 2f
        inc number+3
2:      jsr chrget
        jmp 1b
3:      rts
4:      jmp quantity

; Showing

doprint:
        jsr chrgot
        beq printend
        cmp #';'
        beq 2f
        cmp #','
        beq 1f
        cmp #'"'
        beq printstring
        cmp #t_chr
        beq printcharacter
        jsr expression
        jsr showsigned
        lda #space
        jsr $ffd2
        jmp doprint
1:      lda #space              ; every ten places
        jsr $ffd2
        jsr column
        beq 2f
        cmp #10
        beq 2f
        cmp #20
        beq 2f
        cmp #30
        bne 1b
2:      jsr chrget
        bne doprint
        rts
printend:
        lda #return
        jmp $ffd2
column: sec
        jsr $fff0
        tya
        sec
1:      sbc #40
        bcs 1b
        adc #40
        rts
printstring:
        inc txtptr
        bne 1f
        inc txtptr+1
1:      ldy #0
        lda (txtptr),y
        beq 2f                  ; the closing quotes may be missing
        cmp #'"'
        beq 3f
        jsr $ffd2
        jmp printstring
2:      jmp doprint
3:      jsr chrget
        jmp doprint
printcharacter:
        jsr chrget
        jsr opening
        jsr byte
        txa
        pha
        jsr closing
        pla
        jsr $ffd2
        jmp doprint

showsigned:
        lda number+3
        bpl 1f
        jsr negate
        lda #'-'
        .byte $2c
1:      lda #space
        jsr $ffd2
        jmp showdigits
; A (high byte) and X.
shownumber:
        stx number
        sta number+1
        lda #0
        sta number+2
        sta number+3
showdigits:
        lda #0
        sta length
1:      lda #0                  ; divided by ten; what remains is a digit
        ldy #32
2:      asl number
        rol number+1
        rol number+2
        rol number+3
        rol a
        cmp #10
        bcc 3f
        sbc #10
        inc number
3:      dey
        bne 2b
        pha
        inc length
        lda number
        ora number+1
        ora number+2
        ora number+3
        bne 1b
4:      pla
        ora #'0'
        jsr $ffd2
        dec length
        bne 4b
        rts

; The text at A (low byte) and Y: until a character with bit 7.
show:   sta textend
        sty textend+1
        ldy #0
1:      lda (textend),y
        php
        and #$7f
        jsr $ffd2
        iny
        plp
        bpl 1b
        rts
; The text at A and Y: until a zero.
showzero:
        sta textend
        sty textend+1
        ldy #0
1:      lda (textend),y
        beq 2f
        jsr $ffd2
        iny
        bne 1b
2:      rts

; Error X; with bit 7, none.
showerror:
        txa
        bmi 4f
        pha
        jsr $ffcc
        lda #return
        jsr $ffd2
        lda #'?'
        jsr $ffd2
        lda #<errortexts
        sta textend
        lda #>errortexts
        sta textend+1
        pla
        ldx #0
        ldy #0
1:      cmp errornumbers,x
        beq 3f
        pha
        lda errornumbers,x
        beq 2f                  ; unknown
        pla
        inx
        pha
5:      lda (textend),y
        inc textend
        bne 6f
        inc textend+1
6:      asl a
        bcc 5b
        pla
        jmp 1b
2:      pla
3:      lda textend
        ldy textend+1
        jsr show
        lda #<errortext
        ldy #>errortext
        jsr show
showplace:
        ldx curlin+1
        inx
        beq 4f                  ; no program
        lda #<intext
        ldy #>intext
        jsr show
        lda curlin+1
        ldx curlin
        jsr shownumber
4:      jmp ready

; LIST, with a line or first-last.
dolist: lda #0
        sta linnum
        sta linnum+1
        lda #$ff
        sta other
        sta other+1
        jsr chrgot
        beq 3f
        bcs 1f
        jsr readlinenumber
        lda linnum
        sta other
        lda linnum+1
        sta other+1
        jsr chrgot
        beq 3f
1:      lda #t_minus
        jsr expect
        lda linnum
        pha
        lda linnum+1
        pha
        lda #$ff
        sta linnum
        sta linnum+1
        jsr chrgot
        beq 2f
        bcs listsyntax
        jsr readlinenumber
2:      lda linnum
        sta other
        lda linnum+1
        sta other+1
        pla
        sta linnum+1
        pla
        sta linnum
3:      jsr chrgot
        bne listsyntax
        jsr findline
listline:
        ldy #1
        lda (linebelow),y
        beq 3f
        jsr $ffe1
        bne 1f
        jmp dostop
1:      ldy #2
        lda (linebelow),y
        tax
        iny
        lda (linebelow),y
        cpx other
        pha
        sbc other+1
        pla
        bcc 2f
        cpx other               ; behind the last, or just that
        bne 3f
        cmp other+1
        bne 3f
2:      pha
        lda #return
        jsr $ffd2
        pla
        jsr shownumber
        lda #space
        jsr $ffd2
        jsr listtext
        ldy #0
        lda (linebelow),y
        tax
        iny
        lda (linebelow),y
        stx linebelow
        sta linebelow+1
        jmp listline
3:      lda #return
        jmp $ffd2
listsyntax:
        jmp syntax

listtext:
        ldy #0
        sty quoted
        ldy #4
1:      lda (linebelow),y
        beq 4f
        cmp #'"'
        bne 2f
        lda quoted
        eor #$80
        sta quoted
        lda #'"'
2:      cmp #$80
        bcc 3f
        cmp #$cc
        bcs 3f
        bit quoted
        bmi 3f
        jsr showword
        iny
        bne 1b
3:      jsr $ffd2
        iny
        bne 1b
4:      rts

; The word of token A; Y is kept.
showword:
        and #$7f
        tax
        tya
        pha
        lda #<words
        sta textend
        lda #>words
        sta textend+1
        ldy #0
        inx
1:      dex
        beq 3f
2:      lda (textend),y
        inc textend
        bne 4f
        inc textend+1
4:      asl a
        bcc 2b
        bcs 1b
3:      lda textend
        ldy textend+1
        jsr show
        pla
        tay
        rts

; Files

; "name", device, secondary address: the last two may be left out, and for LOAD and VERIFY all.
file:   lda #0
        jsr $ffbd
        ldx #8
        tay
        jsr $ffba
        jsr chrgot
        beq 4f
        cmp #'"'
        beq 1f
        ldx #typeerror
        jmp error
1:      ldy #0
2:      iny
        lda (txtptr),y
        beq 3f
        cmp #'"'
        bne 2b
3:      dey
        tya
        pha
        ldx txtptr
        ldy txtptr+1
        inx
        bne 5f
        iny
5:      jsr $ffbd
        pla
        sec
        adc txtptr
        sta txtptr
        bcc 6f
        inc txtptr+1
6:      jsr chrgot              ; the closing quotes may be missing
        beq 4f
        jsr chrget
        beq 4f
        jsr comma
        jsr byte
        stx fa
        jsr chrgot
        beq 4f
        jsr comma
        jsr byte
        stx sa
        jsr chrgot
        beq 4f
        jmp syntax
4:      rts
bverify:
        lda #1
        .byte $2c
bload:  lda #0
        sta verck
        jsr file
        lda fnlen
        bne 1f
        ldx #8                  ; MISSING FILE NAME
        jmp error
1:      lda verck
        ldx txttab
        ldy txttab+1
        jsr $ffd5
        bcs ioerror
        lda verck
        beq 2f
        ldx #verifyerror
        lda status
        and #$10
        bne 5f
        lda #<oktext
        ldy #>oktext
        jmp show
2:      lda status
        and #$bf
        beq 3f
        ldx #loaderror
5:      jmp error
3:      lda txtptr+1
        cmp #>buf
        beq 4f
        jsr relink              ; a program that loads another goes on with that
        jmp totextstart
4:      cpy memsiz+1            ; what is elsewhere is not the program's end
        bcs 6f
        stx vartab
        sty vartab+1
        jsr relink
6:      jsr clear
        jmp ready

bsave:  jsr file
        lda #txttab
        ldx vartab
        ldy vartab+1
        jsr $ffd8
        bcs ioerror
        rts
ioerror:
        tax
        bne 1f
        jmp dostop
1:      jmp error

*= $bdcd
        jmp shownumber
