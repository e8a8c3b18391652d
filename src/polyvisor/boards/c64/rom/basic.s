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
        nop
        nop
        jmp new                 ; $a644
*= $a659
        jsr totextstart
        lda #0
        nop                     ; $a65e
        nop
        jmp clear               ; $a660
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
        cmp #$ff                ; pi
        beq copy
        cmp #$80                ; graphics are left out
        bcc 2f
        inx
        jmp nextword
2:      cmp #'0'
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
