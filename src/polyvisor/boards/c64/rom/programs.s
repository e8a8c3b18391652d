; LOAD, SAVE and VERIFY.

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
