; Statements, and how they follow each other.

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
