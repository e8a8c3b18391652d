; The screen's editor: characters are printed where the cursor is, lines are read back from the screen.
; A logical line has one row, or two when something was printed across its right end.

*= $e000

columns = 40
rows = 25

; The high bits of the rows' addresses; the low bytes are in rowlow.
rowhigh:
        .byte 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1
        .byte 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3

; pnt and user become those of row X.
rowaddress:
        lda rowlow,x
        sta pnt
        sta user
        lda ldtb1,x
        and #3
        sta user+1
        ora hibase
        sta pnt+1
        lda user+1
        ora #>colours
        sta user+1
        rts

; The logical line of row tblx, and the cursor's place in it; pntr has the column, 0 to 39.
setline:
        ldx tblx
1:      lda ldtb1,x
        bmi 2f
        lda pntr
        clc
        adc #columns
        sta pntr
        dex
        bpl 1b
        inx
2:      jsr rowaddress
        ldy #columns-1
        inx
        lda ldtb1,x             ; after the last row there is a mark
        bmi 3f
        ldy #79
3:      sty lnmx
        rts

; pntr without the rows before the cursor's.
column:
        lda pntr
1:      cmp #columns
        bcc 2f
        sbc #columns
        bcs 1b
2:      sta pntr
        rts

; Row X becomes blank.
clearrow:
        jsr rowaddress
        ldy #columns-1
1:      lda #space
        sta (pnt),y
        lda color
        sta (user),y
        dey
        bpl 1b
        rts

; Row X gets what is in row Y, and whether a logical line begins there. X is kept.
copyrow:
        lda rowlow,y
        sta sal
        sta eal
        lda ldtb1,y
        pha
        and #3
        ora #>colours
        sta eal+1
        pla
        pha
        and #3
        ora hibase
        sta sal+1
        pla
        and #$80
        ora rowhigh,x
        sta ldtb1,x
        jsr rowaddress
        ldy #columns-1
1:      lda (sal),y
        sta (pnt),y
        lda (eal),y
        sta (user),y
        dey
        bpl 1b
        rts

; LOAD and SAVE use the same pointers.
savepointers:
        ldx #3
1:      lda sal,x
        sta savedpointers,x
        dex
        bpl 1b
        rts
restorepointers:
        ldx #3
1:      lda savedpointers,x
        sta sal,x
        dex
        bpl 1b
        rts
savedpointers = $02a7           ; 4 bytes that nothing else uses

; All rows go up by one; the cursor stays with what it is on.
scroll:
        jsr savepointers
        ldx #0
1:      txa
        tay
        iny
        jsr copyrow
        inx
        cpx #rows-1
        bne 1b
        lda #$83
        sta ldtb1,x
        jsr clearrow
        lda ldtb1               ; what was the second row of a line is its first now
        ora #$80
        sta ldtb1
        dec tblx
        dec lxsp
        ; While CTRL is held it is slow.
        lda shflag
        and #4
        beq 3f
        ldy #0
2:      nop
        dex
        bne 2b
        dey
        bne 2b
3:      jmp restorepointers

; A row of the cursor's line is added behind it. The cursor stays where it is.
extend:
        ldx tblx
        cpx #rows-1
        bne 1f
        jsr scroll
        ldx tblx
1:      inx
        stx blankrow
        jsr savepointers
        ldx #rows-1
2:      cpx blankrow
        beq 3f
        txa
        tay
        dey
        jsr copyrow
        dex
        bne 2b
3:      lda rowhigh,x           ; it begins no line
        sta ldtb1,x
        jsr clearrow
        jsr restorepointers
        jsr column
        jmp setline
blankrow = $02ab

; The cursor goes one place to the right, into a new row of its line if need be.
advance:
        lda pntr
        cmp lnmx
        bne 2f
        cmp #columns-1
        bne nextline            ; two rows are the most
        jsr extend
2:      inc pntr
        lda pntr
        cmp #columns
        bne 3f
        inc tblx
3:      rts

; To the beginning of the next logical line.
nextline:
        ldx tblx
1:      inx
        cpx #rows
        bne 2f
        jsr scroll
        ldx #rows-1
2:      lda ldtb1,x
        bpl 1b
        stx tblx
        lda #0
        sta pntr
        jmp setline

newline:
        lda #0
        sta insrt
        sta rvs
        sta qtsw
        beq nextline

goright:
        lda pntr
        cmp lnmx
        beq nextline
        inc pntr
        lda pntr
        cmp #columns
        bne 1f
        inc tblx
1:      rts

; Carry: there is nothing on the left.
goleft:
        lda pntr
        beq 1f
        dec pntr
        lda pntr
        cmp #columns-1
        bne 2f
        dec tblx
        clc
        rts
1:      lda tblx
        beq 3f
        dec tblx
        lda #columns-1
        sta pntr
        jsr setline
2:      clc
        rts
3:      sec
        rts

godown:
        jsr column
        lda tblx
        cmp #rows-1
        bne 1f
        jsr scroll
1:      inc tblx
        jmp setline

goup:
        lda tblx
        beq 1f
        jsr column
        dec tblx
        jmp setline
1:      rts

delete:
        lda pntr
        pha
        jsr goleft
        pla
        bcs 3f
        ldy pntr
        tax
        beq 2f                  ; in the line before, its last place is cleared
1:      cpy lnmx
        beq 2f
        iny
        lda (pnt),y
        dey
        sta (pnt),y
        iny
        lda (user),y
        dey
        sta (user),y
        iny
        bne 1b
2:      lda #space
        sta (pnt),y
        lda color
        sta (user),y
3:      rts

insert:
        ldy lnmx
        lda (pnt),y
        cmp #space
        beq 1f
        cpy #columns-1
        bne 4f                  ; no room
        jsr extend
        ldy lnmx
1:      cpy pntr
        beq 4f
2:      dey
        lda (pnt),y
        iny
        sta (pnt),y
        dey
        lda (user),y
        iny
        sta (user),y
        dey
        cpy pntr
        bne 2b
        lda #space
        sta (pnt),y
        lda color
        sta (user),y
        inc insrt
4:      rts

; The character A is put at the cursor as screen code.
put:
        ldy pntr
        sta (pnt),y
        lda color
        sta (user),y
        rts

; Print the character in A on the screen. All registers are kept.
printscreen:
        pha
        sta data
        txa
        pha
        tya
        pha
        lda data
        and #$60
        beq control
        jsr toscreen
        ldx rvs
        beq 1f
        ora #$80
1:      jsr put
        lda insrt
        beq 2f
        dec insrt
        jmp 3f
2:      lda data
        cmp #'"'
        bne 3f
        lda qtsw
        eor #1
        sta qtsw
3:      jsr advance
printed:
        pla
        tay
        pla
        tax
        pla
        clc
        rts

; Control characters: between quotes, and in places that were inserted, they are shown instead, reversed.
control:
        lda data
        and #$7f
        cmp #return
        beq 3f
        lda data
        ldx insrt
        beq 1f
        cmp #$94                ; more can be inserted
        beq 3f
        dec insrt
        bpl 2f
1:      ldx qtsw
        beq 3f
        cmp #$14
        beq 3f
2:      and #$7f
        ldx data
        bpl 4f
        ora #$40
4:      ora #$80
        jsr put
        jsr advance
        jmp printed
3:      ldx #colourcodes-codes-1
        lda data
5:      cmp codes,x
        beq 6f
        dex
        bpl 5b
        ldx #15
7:      cmp colourcodes,x
        beq 8f
        dex
        bpl 7b
        bmi printed
8:      stx color
        jmp printed
6:      txa
        asl a
        tax
        lda #>printed-1
        pha
        lda #<printed-1
        pha
        lda actions+1,x
        pha
        lda actions,x
        pha
        rts

codes:  .byte $0d, $8d, $11, $91, $1d, $9d, $13, $93, $14, $94, $12, $92, $0e, $8e, $08, $09
; By the colour's number.
colourcodes:
        .byte $90, $05, $1c, $9f, $9c, $1e, $1f, $9e, $81, $95, $96, $97, $98, $99, $9a, $9b
actions:
        .word newline-1, newline-1, godown-1, goup-1, goright-1, goleft-1, home-1, clear-1, delete-1, insert-1
        .word reverseon-1, reverseoff-1, lowerset-1, upperset-1, lockset-1, unlockset-1

reverseon:
        lda #1
        .byte $2c               ; bit absolute: the next instruction is its operand
reverseoff:
        lda #0
        sta rvs
        rts
lowerset:
        lda vic+$18
        ora #2
        sta vic+$18
        rts
upperset:
        lda vic+$18
        and #$fd
        sta vic+$18
        rts
lockset:
        lda #$80
        .byte $2c
unlockset:
        lda #0
        sta mode
        rts

; The screen code of the printable character in data.
toscreen:
        lda data
        cmp #$ff
        bne 1f
        lda #$5e
        rts
1:      pha
        lsr a
        lsr a
        lsr a
        lsr a
        lsr a
        tax
        pla
        and #$1f
        ora screenbits,x
        rts
screenbits:
        .byte 0, $20, 0, $40, 0, $60, $40, $60

; The character of the screen code in A.
fromscreen:
        and #$7f
        pha
        lsr a
        lsr a
        lsr a
        lsr a
        lsr a
        tax
        pla
        and #$1f
        ora characterbits,x
        rts
characterbits:
        .byte $40, $20, $c0, $a0
